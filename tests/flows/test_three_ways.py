"""The three ways to another champion, on what `flywheel up` runs: the schedule, Prefect's form, an alias in MLflow."""

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
from sqlalchemy import select

from infra import promotions, registry
from infra.database.session import session
from infra.database.tables import Promotion
from infra.servers import running
from tests.conftest import living_in
from tests.flows.conftest import ROOT, environment_of, flywheel
from tests.mlflow_server import free_port

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
                if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") and having.items() <= run.items():
                    return run
            return None

        return dict(self.eventually(find))

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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, artifact: Callable[..., Path]) -> Iterator[House]:
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
    done = flywheel("ingest", "jsonl", str(log), home=home)
    assert done.returncode == 0, done.stderr
    ports = {f"FLYWHEEL_{name}_PORT": str(free_port()) for name in ("GATEWAY", "PREFECT", "MLFLOW")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "up"], cwd=ROOT, env=environment_of(home, **ports), stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (home / "up.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, "up did not come up; see its logs"
            time.sleep(0.2)
        with living_in(home, TEACHER=""):
            yield House(home, running(), versions)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def test_the_form_rolls_back_and_what_does_not_fit_it_is_refused(house: House) -> None:
    one, two = house.versions
    assert house.eventually(lambda: house.serves(two))
    schema = house.deployment("release/release")["parameter_openapi_schema"]
    assert {"workload", "rollback", "gate"} <= set(schema["properties"]) and schema["required"] == ["workload"]
    refused = house.run("release/release", workload="shop", rollback="perhaps")
    assert refused.status_code in (409, 422) and "perhaps" in refused.text
    made = house.run("release/release", workload="shop", rollback=True)
    assert made.status_code == 201, made.text
    assert house.ended("release/release", id=made.json()["id"])["state_type"] == "COMPLETED"
    assert house.eventually(lambda: house.serves(one))
    with session(write=False) as db:
        moves = list(db.scalars(select(Promotion).order_by(Promotion.at)))
    assert (moves[-1].version, moves[-1].by, moves[-1].flow_run_id) == (one, "rollback", made.json()["id"])


def test_an_alias_that_is_moved_in_mlflow_runs_redeploy(house: House) -> None:
    champion = registry.champion_number("shop")
    other = next(version for version in house.versions if version != champion)
    url = f"{house.address['mlflow']}/api/2.0/mlflow/registered-models/alias"  # as MLflow's page does
    moved = httpx.post(url, json={"name": "shop", "alias": "champion", "version": other}, timeout=60)
    assert moved.status_code == 200, moved.text
    run = house.ended("redeploy/redeploy")
    assert (run["state_type"], run["parameters"]) == ("COMPLETED", {"workload": "shop"})
    assert house.logged(run, f"version {other} of 'shop' did not pass the gate")
    assert house.serves(other), "redeploy has waited for it"
    assert len(house.runs_of("redeploy/redeploy")) == 1
    with session(write=False) as db:
        last = list(db.scalars(select(Promotion).order_by(Promotion.at)))[-1]
    assert (last.version, last.replaced, last.by, last.verdict_id) == (other, champion, "hand", None)
    assert "did not pass the gate" in (house.home / "logs" / "gateway.log").read_text()


def test_the_schedule_turns_every_workload(house: House) -> None:
    nightly = house.deployment("nightly/nightly")
    assert [one["schedule"]["cron"] for one in nightly["schedules"]] == ["0 3 * * *"]
    url = f"{house.address['prefect']}/api/deployments/{nightly['id']}/schedules"
    # A schedule as well, of each half minute: nobody waits for three at night.
    soon = {"schedule": {"interval": 30}, "active": True}
    house.eventually(lambda: httpx.post(url, json=[soon], timeout=60).status_code == 201)
    run = house.ended("nightly/nightly")
    assert run["auto_scheduled"] and run["state_type"] == "COMPLETED"
    assert house.logged(run, "small: "), "each workload had its turn, and too little traffic is no failure"
