"""What `flywheel up` runs, started once for all tests that press its buttons."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra import promotions, registry
from infra.servers import running
from tests.conftest import living_in
from tests.flows.conftest import ROOT, environment_of, flywheel
from tests.mlflow_server import free_port
from tests.shop_log import write_log

PATIENCE = 240.0


class House:
    """A home that `flywheel up` runs on, with two registered versions of `shop`, and some traffic of `small`."""

    def __init__(self, home: Path, address: dict[str, str], versions: list[str]) -> None:
        self.home, self.address, self.versions = home, address, versions

    def deployment(self, name: str) -> dict[str, Any]:
        return self.eventually(lambda: self._get(f"deployments/name/{name}"))

    def run(self, name: str, **parameters: Any) -> httpx.Response:
        """What the form's button sends; again where Prefect's SQLite was locked, as its own clients do."""
        url = f"{self.address['prefect']}/api/deployments/{self.deployment(name)['id']}/create_flow_run"

        def send() -> httpx.Response | None:
            answer = httpx.post(url, json={"parameters": parameters}, timeout=60)
            return None if answer.status_code == 503 else answer

        answer: httpx.Response = self.eventually(lambda: [told] if (told := send()) is not None else None)[0]
        return answer

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        asked = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}}
        found = httpx.post(f"{self.address['prefect']}/api/flow_runs/filter", json=asked, timeout=60).json()
        return list(found)

    def ended(self, name: str, **having: Any) -> dict[str, Any]:
        """The first run of a deployment that has ended, with such properties."""

        def find() -> dict[str, Any] | None:
            for run in self.runs_of(name):
                if (
                    run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
                    and having.items() <= run.items()
                ):
                    return run
            return None

        return dict(self.eventually(find))

    def state_of(self, run: str) -> dict[str, Any]:
        """A run's present state: `type`, `name` and `message`."""
        return dict(self._get(f"flow_runs/{run}")["state"])

    def comes_to(self, run: str, name: str) -> dict[str, Any]:
        """The state of that name, once the run is in it."""
        return dict(self.eventually(lambda: state if (state := self.state_of(run))["name"] == name else None))

    def set_state(self, run: str, kind: str) -> None:
        """What the page's buttons send."""
        url = f"{self.address['prefect']}/api/flow_runs/{run}/set_state"
        answer = httpx.post(url, json={"state": {"type": kind, "name": kind.title()}}, timeout=60)
        assert answer.status_code == 201, answer.text

    def logged(self, run: dict[str, Any], text: str) -> bool:
        """Whether the run's log comes to say it: Prefect sends lines by the batch, some after the run has ended."""

        def said() -> bool:
            asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
            found = httpx.post(f"{self.address['prefect']}/api/logs/filter", json=asked, timeout=60).json()
            return any(text in line["message"] for line in found)

        return bool(self.eventually(said))

    def serves(self, version: str) -> bool:
        listed = httpx.get(f"{self.address['gateway']}/v1/models", timeout=60).json()["data"]
        return version in [one["version"] for one in listed if one["id"] == "shop"]

    def eventually(self, ready: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := ready()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.5)
        return found

    def _get(self, path: str) -> Any:
        answer = httpx.get(f"{self.address['prefect']}/api/{path}", timeout=60)
        return answer.json() if answer.status_code == 200 else None


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory, artifact: Callable[..., Path]) -> Iterator[House]:
    home = tmp_path_factory.mktemp("home")
    versions = []
    with living_in(home, TEACHER=""):
        for number in (1, 2):
            made = {"metrics": {}, "tags": {}, "parameters": {}, "run_name": f"number {number}"}
            version, _ = registry.register("shop", artifact(number=number), **made)
            promotions.promote("shop", version, "release", "passed")
            versions.append(version)
    log = home / "day.jsonl"
    said = {"messages": [{"role": "user", "content": "hello"}]}
    answered = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    log.write_text(json.dumps({"id": "1", "workload_id": "small", "request": said, "response": answered}))
    shop = write_log(home / "shop.jsonl", seed=5, conversations=110, day=3)
    done = flywheel("ingest", "jsonl", str(log), str(shop), home=home)
    assert done.returncode == 0, done.stderr
    ports = {f"FLYWHEEL_{name}_PORT": str(free_port()) for name in ("GATEWAY", "PREFECT", "MLFLOW")}
    # A turn that names no base ends before it trains: the nightly one takes seconds.
    settings = {"FLYWHEEL_TORCHRUN": "--nproc-per-node 1", "FLYWHEEL_STUDENT": str(home / "none")}
    environment = environment_of(home, **ports, **settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "up"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (home / "up.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, "up did not come up; see its logs"
            time.sleep(0.2)
        with living_in(home, TEACHER=""):
            there = running()
        yield House(home, there, versions)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture
def house(standing: House) -> Iterator[House]:
    """The house, whose home the settings name."""
    with living_in(standing.home, TEACHER=""):
        yield standing
