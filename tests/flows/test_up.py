"""`flywheel up` for real: three servers and the deployments, a champion that changes under them, and a clean stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.deployments import deployments
from infra.seedling import shop
from tests.flows.conftest import ROOT, environment_of, flywheel
from tests.mlflow_server import free_port
from tests.shop_log import WORKLOAD

DEPLOYED = {deployment["name"] for deployment in deployments()}


@pytest.fixture(scope="module")
def up(turned: Any) -> Iterator[tuple[Path, dict[str, str], subprocess.Popen[bytes]]]:
    home, _ = turned
    ports = {f"{name}_PORT": str(free_port()) for name in ("GATEWAY", "PREFECT", "MLFLOW")}
    environment = environment_of(home, **{f"FLYWHEEL_{name}": port for name, port in ports.items()})
    process = subprocess.Popen([sys.executable, "-m", "flows", "up"], cwd=ROOT, env=environment)
    deadline = time.monotonic() + 240
    while not (home / "up.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, "up did not come up; see its logs"
        time.sleep(0.2)
    yield home, json.loads((home / "up.json").read_text()), process
    if process.poll() is None:
        process.kill()


def ask(gateway: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": shop.SYSTEM}, {"role": "user", "content": "Where is order 48213?"}]
    body = {"model": WORKLOAD, "messages": messages, "tools": shop.tool_schemas()}
    answer = httpx.post(f"{gateway}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_champion_answers_and_rollback_reaches_it_without_a_restart(up: Any) -> None:
    home, address, _ = up
    before = ask(address["gateway"])["model"]
    done = flywheel("release", "--rollback", "--workload", WORKLOAD, "--json", home=home)
    assert done.returncode == 0, done.stderr
    champion = json.loads(done.stdout)["champion"]
    deadline = time.monotonic() + 60
    while (after := ask(address["gateway"])["model"]) == before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (before, after) == (
        f"flywheel:{WORKLOAD}/{json.loads(done.stdout)['previous']}",
        f"flywheel:{WORKLOAD}/{champion}",
    )


def test_feedback_is_taken(up: Any) -> None:
    _, address, _ = up
    given = {"record_id": ask(address["gateway"])["id"], "kind": "thumb", "value": 1}
    assert httpx.post(f"{address['gateway']}/v1/feedback", json=given, timeout=30).status_code == 200


def test_every_flow_is_a_deployment_with_a_form_and_the_wheel_has_a_schedule(up: Any) -> None:
    _, address, _ = up
    deadline = time.monotonic() + 120
    found: dict[str, Any] = {}
    while set(found) != DEPLOYED and time.monotonic() < deadline:
        listed = httpx.post(f"{address['prefect']}/api/deployments/filter", json={}, timeout=30).json()
        found = {deployment["name"]: deployment for deployment in listed}
        time.sleep(0.5)
    assert set(found) == DEPLOYED
    assert [s["schedule"]["cron"] for s in found["nightly"]["schedules"]] == ["0 3 * * 1-6"]
    form = found["flywheel"]["parameter_openapi_schema"]
    assert "workload" in form["required"]
    assert {"curate", "distill", "candidates", "evaluate", "gate"} <= set(form["properties"])


def test_the_registered_versions_are_in_mlflow(up: Any) -> None:
    _, address, _ = up
    url = f"{address['mlflow']}/api/2.0/mlflow/registered-models/get"
    model = httpx.get(url, params={"name": WORKLOAD}, timeout=30).json()["registered_model"]
    assert {alias["alias"] for alias in model["aliases"]} == {"champion", "previous"}


def test_a_port_in_use_is_said_before_anything_starts(up: Any, tmp_path: Path) -> None:
    _, address, _ = up
    taken = address["gateway"].rsplit(":", 1)[1]
    done = flywheel("up", home=tmp_path, FLYWHEEL_GATEWAY_PORT=taken)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert taken in done.stderr and "FLYWHEEL_GATEWAY_PORT" in done.stderr


def test_ctrl_c_stops_everything(up: Any) -> None:
    home, address, process = up
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=40) == 0
    assert not (home / "up.json").exists()
    for url in address.values():
        if isinstance(url, str):
            with pytest.raises(httpx.ConnectError):
                httpx.get(url, timeout=5)
    left = subprocess.run(["pgrep", "-f", str(home)], capture_output=True, text=True).stdout.split()
    assert [pid for pid in left if int(pid) != os.getpid()] == []
