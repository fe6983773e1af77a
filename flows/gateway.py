"""The gateway with the configured teacher behind it; `python -m flows.gateway` runs it, as `flywheel up` does.

Where a person moves the alias in MLflow, `redeploy` runs: as a run of its deployment where a Prefect server is
configured, so that it has a page and a log there, its retries, and a process of its own; without one in this process,
which has nobody to ask.
"""

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from infra.settings import SetupError, settings

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("flywheel.gateway")


def app(workload: str | None = None) -> "FastAPI":
    """The gateway; where a workload is named, its teacher stands behind it, else whichever is configured."""
    from infra.gateway.app import create_app
    from tasks.teachers import teacher_for

    return create_app(teacher_for(workload).behind_gateway(), begin_redeploy)


def begin_redeploy(workload: str, delivery: str) -> str:
    """Begin `redeploy` and say where it runs; Prefect makes one run of one delivery, however often it is asked."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        threading.Thread(target=redeploy_here, args=(workload,), name="redeploy", daemon=True).start()
        return "in this process"
    from prefect.deployments import run_deployment

    run: Any = run_deployment(
        "redeploy/redeploy", parameters={"workload": workload}, timeout=0, as_subflow=False, idempotency_key=delivery
    )
    return f"flow run {run.id}"


def redeploy_here(workload: str) -> None:
    from tasks.redeploy import redeploy

    try:
        log.info("redeployed: %s", redeploy(workload))
    except SetupError as problem:
        log.error("redeploy of %r failed: %s", workload, problem)


def main() -> int:
    from flows.__main__ import complain, quiet_environment

    quiet_environment()
    from infra.gateway.server import serve

    try:
        serve(app(), settings().host, settings().gateway_port)
    except SetupError as problem:
        return complain(str(problem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
