"""Prefect's and MLflow's share of a quick turn of the wheel: against a Prefect server that runs, and without one.

    python bench/orchestration.py [conversations]

The traffic is the simulated shop's log, with the teacher's answers in it; the turn is the preset `quick`: the first of
a fresh home, in which MLflow makes its database, and the next, after another day. Prefect's share is the time of the
whole call (its import, the server that it starts where none runs, the states of flow and tasks) outside of the stages;
MLflow's is the time inside of its client, with its import and the copies of the files. Without a server Prefect starts
one for the run, which it makes a database for the first time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Clock:
    """Seconds spent inside, nested entries counted once."""

    def __init__(self) -> None:
        self.spent = self.entered = 0.0
        self.depth = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.depth += 1
        if self.depth == 1:
            self.entered = time.monotonic()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.spent += time.monotonic() - self.entered


def turn(log: str) -> dict[str, Any]:
    """One turn in this process; the seconds of it all, of the stages, and of MLflow."""
    from flows.__main__ import quiet_environment

    quiet_environment()
    from infra.database.session import session
    from tasks.ingest import ingest
    from tasks.sources import JSONL

    ingest(JSONL(paths=(log,)))
    with session(write=False):
        pass
    from infra import registry, tracking

    stages, mlflow = Clock(), Clock()
    plain = tracking.connected

    @contextmanager
    def connected(uri: str) -> Iterator[Any]:
        with mlflow(), plain(uri) as client:
            yield client

    tracking.connected = registry.connected = connected
    began = time.monotonic()
    import flows.stage

    class Timed(flows.stage.Bar):
        def __enter__(self) -> "Timed":
            self.inside = stages()
            self.inside.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.inside.__exit__(None, None, None)

    flows.stage.Bar = Timed
    from flows.deployments import presets
    from flows.flywheel import flywheel
    from tests.shop_log import WORKLOAD

    gate = {"margin": 0.99, "min_holdout": 10}  # so that something is registered
    outcome = flywheel(**flywheel.validate_parameters({"workload": WORKLOAD, **presets()["quick"], "gate": gate}))
    whole = time.monotonic() - began
    return {"whole": whole, "stages": stages.spent, "mlflow": mlflow.spent, "outcome": outcome["outcome"]}


def measured(log: Path, address: str | None, home: str) -> dict[str, Any]:
    """A turn in a process of its own."""
    given = {"FLYWHEEL_HOME": home, **({"PREFECT_API_URL": f"{address}/api"} if address else {})}
    done = subprocess.run([sys.executable, __file__, "--turn", str(log)], env={**os.environ, **given},
                          capture_output=True, text=True, check=True)  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(conversations: int) -> None:
    from infra.servers import Servers
    from tests.mlflow_server import free_port
    from tests.shop_log import write_log

    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder) / "logs") as servers:
        days = {
            name: write_log(Path(folder) / f"{name}.jsonl", seed=day, conversations=conversations, day=day)
            for day, name in enumerate(("first", "next"), 1)
        }
        port = str(free_port())
        given = {"PREFECT_HOME": f"{folder}/prefect", "PREFECT_SERVER_API_PORT": port}
        servers.start("prefect", ["prefect", "server", "start", "--host", "127.0.0.1"], given)
        servers.wait_for("prefect", f"http://127.0.0.1:{port}/api/health")
        for name, address in (("a server that runs", f"http://127.0.0.1:{port}"), ("no server", None)):
            for which, log in days.items():
                found = measured(log, address, f"{folder}/home of {name}")
                prefect, mlflow = found["whole"] - found["stages"], found["mlflow"]
                spent = {"Prefect": prefect, "MLflow": mlflow, "both": prefect + mlflow}
                shares = "; ".join(f"{what} {s:5.1f} s {s / found['whole']:6.1%}" for what, s in spent.items())
                print(f"{name}, {which} turn: {found['whole']:6.1f} s; {shares} ({found['outcome']})", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--turn"]:
        print(json.dumps(turn(sys.argv[2])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1200)
