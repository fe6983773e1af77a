"""Everything that runs: Prefect with its UI and schedule, MLflow with its UI, the gateway."""

import os
import sys
from typing import Any

from infra.servers import Servers, announce, require_free
from infra.settings import SetupError, settings


def up() -> dict[str, Any] | None:
    """Start Prefect, MLflow, the gateway and the nightly deployment on this machine; Ctrl-C stops them all."""
    from infra import webhook
    from infra.gateway.access import require_tokens

    chosen = settings()
    require_tokens(chosen.host)
    ports = {"gateway": chosen.gateway_port, "prefect": chosen.prefect_port, "mlflow": chosen.mlflow_port}
    for name, port in ports.items():
        require_free(chosen.host, port, f"FLYWHEEL_{name.upper()}_PORT")
    address = {name: f"http://{chosen.host}:{port}" for name, port in ports.items()}
    tracking = chosen.mlflow if chosen.mlflow.startswith("http") else address["mlflow"]
    common = {"PREFECT_API_URL": f"{address['prefect']}/api", "FLYWHEEL_HOME": str(chosen.home)}
    with Servers(chosen.home / "logs") as servers:
        say("starting Prefect, MLflow and the gateway; this takes half a minute the first time")
        servers.start(
            "prefect",
            ["prefect", "server", "start", "--host", chosen.host],
            {
                "PREFECT_SERVER_API_PORT": str(chosen.prefect_port), "PREFECT_SERVER_API_HOST": chosen.host,
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false", "PREFECT_SERVER_UI_V2_ENABLED": "false",
                "PREFECT_UI_API_URL": f"{address['prefect']}/api",
            },
        )  # fmt: skip
        if tracking == address["mlflow"]:
            servers.start(
                "mlflow",
                [
                    "mlflow", "server", "--host", chosen.host, "--port", str(chosen.mlflow_port), "--workers", "1",
                    "--backend-store-uri", chosen.mlflow_uri,
                    "--default-artifact-root", (chosen.home / "mlflow-artifacts").as_uri(),
                ],
                {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **webhook.server_environment()},
            )  # fmt: skip
        if "mlflow" in servers.running:  # before the gateway looks into its database, which it makes the first time
            servers.wait_for("mlflow", f"{address['mlflow']}/health")
        servers.start("gateway", ["flows.gateway"], common)
        servers.wait_for("prefect", f"{address['prefect']}/api/health")
        servers.start("deployments", ["flows.serve"], common)
        servers.wait_for("gateway", f"{address['gateway']}/healthz")
        if "mlflow" in servers.running:
            try:
                webhook.subscribe(tracking, address["gateway"])
            except SetupError as problem:
                say(f"no webhook: {problem}. The gateway follows the aliases all the same, but `redeploy` does not run")
        state = announce({"gateway": address["gateway"], "prefect": address["prefect"], "mlflow": tracking})
        try:
            say(f"gateway   {address['gateway']}/v1/chat/completions")
            say(f"Prefect   {address['prefect']}   (Deployments → flywheel → Run)")
            say(f"MLflow    {tracking}   (Models)")
            say(f"logs      {servers.logs}\nCtrl-C stops them all.")
            servers.watch()
        finally:
            state.unlink(missing_ok=True)
        say("stopping")
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


os.environ.setdefault("PYTHONUNBUFFERED", "1")
