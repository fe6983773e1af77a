"""The services of infra/compose.yaml, each a real process, with nothing in common but what the file gives them.

PostgreSQL, a store that speaks S3 (moto), Prefect's server, MLflow's, two workers and the gateway, which has a home of
its own: one turn of the wheel, begun by Prefect's API, ends with the gateway answering as the student.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests.compose import PATIENCE, ROOT, Topology
from tests.conftest import cluster
from tests.mlflow_server import free_port, started
from tests.shop_log import ORDERS, asks_order, write_orders

INNER = ("prefect:4200", "mlflow:5000", "gateway:8080", "worker-cpu:8081", "worker-gpu:8081", "minio:9000")
WORKERS = ("worker-cpu", "worker-gpu")
# A margin this wide promotes whatever was made: this is about the way, not about the student.
TURN = {
    "workload": ORDERS,
    "distill": {"epochs": 2},
    "candidates": [{"method": {"name": "rtn", "bits": 8}}, {"method": {"name": "rtn", "bits": 4}}],
    "gate": {"margin": 0.99, "min_holdout": 10},
}


class House:
    """The running topology, as those see it who have its addresses and its secrets."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        auth = tuple(self.secret("prefect_auth").split(":", 1))
        self.prefect = httpx.Client(base_url=f"{topology.address('prefect')}/api", auth=auth, timeout=60)  # type: ignore[arg-type]
        token = self.secret("gateway_tokens").partition(":")[2]
        self.gateway = httpx.Client(
            base_url=topology.address("gateway"), headers={"authorization": f"Bearer {token}"}, timeout=60
        )
        self.mlflow = httpx.Client(base_url=f"{topology.address('mlflow')}/api/2.0/mlflow", timeout=60)

    def secret(self, name: str) -> str:
        return (self.topology.secrets / name).read_text()

    def run(self, name: str, parameters: dict[str, Any]) -> str:
        deployment = self.prefect.get(f"/deployments/name/{name}").json()
        answer = self.prefect.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ended(self, run: str) -> dict[str, Any]:
        state = self.eventually(
            lambda: s if (s := self.prefect.get(f"/flow_runs/{run}").json()["state"])["type"] in
            ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None
        )  # fmt: skip
        said = [self.topology.said(service) for service in self.topology.running if service.startswith("worker")]
        assert state["type"] == "COMPLETED", "\n".join([str(state), *said])
        return dict(state)

    def eventually(self, ready: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := ready()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.5)
        return found

    def served(self) -> str | None:
        listed = self.gateway.get("/v1/models").json()["data"]
        return next((one["version"] for one in listed if one["id"] == ORDERS), None)

    def ask(self) -> httpx.Response:
        body = {"model": ORDERS, "messages": asks_order("Where is order 48213?")}
        return self.gateway.post("/v1/chat/completions", json=body)

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.secret("database_url")) as db:
            return list(db.execute(query.encode()))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The store's address and a client of it; the bucket is there, as the service `bucket` leaves it."""
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    folder = Path(sys.executable).parent
    log = Path("/dev/null")
    with started(
        [str(folder / "moto_server"), "-p", str(port)], log, f"http://127.0.0.1:{port}/moto-api/data.json", {}
    ):
        store = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id="x", aws_secret_access_key="x",
            region_name="us-east-1",
        )  # fmt: skip
        store.create_bucket(Bucket="mlflow")
        yield store


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, bucket: Any) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("topology")
    secrets, database = folder / "secrets", free_port()
    made = [sys.executable, "infra/make_secrets.py", "--folder", str(secrets), "--database", f"127.0.0.1:{database}"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    ports = {name: free_port() for name in INNER} | {"minio:9000": urlsplit(bucket.meta.endpoint_url).port}
    with cluster(database) as postgres:
        psql = [str(postgres.programs / "psql"), "-v", "ON_ERROR_STOP=1", "-f", str(secrets / "roles.sql")]
        subprocess.run([*psql, postgres.url.format("postgres")], check=True, capture_output=True)
        with Topology(folder, secrets, ports, FLYWHEEL_TEACHER="").ends() as topology:
            topology.completed("migrate")
            for service in ("prefect", "mlflow", "gateway"):
                topology.start(service)
            topology.healthy("prefect", "mlflow")
            topology.completed("deployments")
            for service in WORKERS:
                topology.start(service)
            topology.healthy(*WORKERS, "gateway")
            yield House(topology)


def test_before_the_first_turn_there_is_nobody_to_answer(house: House) -> None:
    assert house.ask().status_code == 503
    assert httpx.get(f"{house.topology.address('prefect')}/api/flows/count", timeout=60).status_code in (401, 405)
    refused = httpx.post(f"{house.topology.address('gateway')}/v1/chat/completions", json={}, timeout=60)
    assert refused.status_code == 401


def test_a_turn_on_the_worker_ends_with_the_gateway_serving_from_the_store(house: House, bucket: Any) -> None:
    logs = house.topology.folder / "logs"
    logs.mkdir()
    write_orders(logs, seed=1, messages=360)
    source = {"name": "jsonl", "paths": [str(logs)]}
    house.ended(house.run("flywheel/flywheel", {**TURN, "source": source}))
    version = house.served()
    reasons = house.rows("SELECT reasons FROM verdict")
    assert version is not None, f"redeploy waits until the gateway has it; the gate said {reasons}"
    answer = house.ask()
    assert (answer.status_code, answer.json()["model"]) == (200, f"flywheel:{ORDERS}/{version}"), answer.text

    stored = [one["Key"] for one in bucket.list_objects_v2(Bucket="mlflow")["Contents"]]
    models = [key for key in stored if key.startswith("artifacts/") and key.endswith("model/model.gguf")]
    assert len(models) == 2, stored
    homes = [house.topology.home(service) for service in ("worker-cpu", "gateway")]
    assert not (homes[0] / "mlflow-artifacts").exists() and not (homes[0] / "mlflow.db").exists()
    (fetched,) = homes[1].glob("serving/*/*/model.gguf")
    sizes = {key: bucket.head_object(Bucket="mlflow", Key=key)["ContentLength"] for key in models}
    assert fetched.stat().st_size in sizes.values()
    assert not list(homes[1].glob("candidates/*")), "the gateway has none of the worker's files"


def test_calls_and_feedback_are_in_postgresql_by_the_client_of_their_token(house: House) -> None:
    answered = house.ask().json()["id"]
    given = house.gateway.post("/v1/feedback", json={"record_id": answered, "kind": "thumb", "value": 1})
    assert given.status_code == 200, given.text
    found = house.eventually(lambda: house.rows("SELECT client, model FROM interaction WHERE source = 'gateway'"))
    assert found[-1][0] == "app" and found[-1][1].startswith("flywheel:")
    assert house.rows("SELECT kind FROM feedback") == [("thumb",)]


def test_an_alias_moved_in_mlflow_reaches_worker_and_gateway(house: House) -> None:
    served = house.served()
    (other,) = {"1", "2"} - {served}
    moved = house.mlflow.post("/registered-models/alias", json={"name": ORDERS, "alias": "champion", "version": other})
    assert moved.status_code == 200, moved.text

    def redeployed() -> str | None:
        asked = {"flow_runs": {"name": {"any_": [f"redeploy-{ORDERS}"]}}, "flows": {"name": {"any_": ["redeploy"]}}}
        found = house.prefect.post("/flow_runs/filter", json=asked).json()
        return next((run["id"] for run in found if run["deployment_id"]), None)

    house.ended(house.eventually(redeployed))
    assert house.served() == other


def test_no_secret_is_in_a_log_or_on_a_command_line(house: House) -> None:
    values = {name: house.secret(name) for name in ("prefect_auth", "gateway_tokens", "s3_password", "redaction_key")}
    needles = {name: value.partition(":")[2] or value for name, value in values.items()}
    for url in ("database_url", "prefect_database_url", "mlflow_database_url"):
        needles[url] = str(urlsplit(house.secret(url)).password)
    lines = [
        (Path("/proc") / str(process.pid) / "cmdline").read_bytes().decode()
        for process in house.topology.running.values()
    ]
    logs = [house.topology.log(service).read_text() for service in house.topology.running]
    for name, needle in needles.items():
        assert not any(needle in text for text in [*lines, *logs]), name


def test_metrics_are_there_for_prometheus(house: House) -> None:
    told = httpx.get(f"{house.topology.address('gateway')}/metrics", timeout=60)
    assert f'flywheel_requests_total{{outcome="ok",served_by="champion",workload="{ORDERS}"}}' in told.text.replace(
        ", ", ","
    )
