"""Stages on a Ray cluster: two real nodes, of which one dies under a sweep, and what is said where there is none."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open
from sqlalchemy import select

from flows.cluster import of_others, require
from infra.database.session import session
from infra.database.tables import Student
from infra.settings import SetupError
from tasks.curate import CurateSpec, curate
from tasks.ingest import ingest
from tasks.sources import JSONL
from tests.conftest import living_in
from tests.flows.conftest import ROOT, environment_of, flywheel
from tests.flows.test_cli import complaint
from tests.mlflow_server import free_port
from tests.shop_log import WORKLOAD, write_log

PATIENCE = 300  # seconds for a server to come up on a busy machine
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",  # else it leaves a token in the person's home
    "RAY_health_check_period_ms": "1000", "RAY_worker_register_timeout_seconds": str(PATIENCE),
    "RAY_raylet_start_wait_time_s": str(PATIENCE),
    "RAY_memory_monitor_refresh_ms": "0", "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
# What a raylet's agents import. It waits 15 seconds for their ports, whatever it is told (ray-project/ray#65983).
AGENTS = "import ray.dashboard.agent, ray.dashboard.modules.reporter.reporter_agent, ray._private.runtime_env.agent"
SMALL = ("--num-cpus", "1", "--object-store-memory", "80000000", "--node-ip-address", "127.0.0.1", "--block")
STEPS = 48
SWEEP = ("--sweep.over", '{"learning_rate": [0.001, 0.002]}', "--sweep.seeds", "2")
STUDENT = (
    "--distill.learn", "imitation", "--distill.rank", "4", "--distill.alpha", "8", "--distill.epochs", "30",
    "--distill.max_steps", str(STEPS), "--distill.checkpoint_steps", "1",
)  # fmt: skip


def family(process: "subprocess.Popen[Any]") -> list[psutil.Process]:
    """All of a process's session, orphans too."""
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(one.pid) == process.pid:
                found.append(one)
    return found


def kill(process: "subprocess.Popen[Any]") -> None:
    for one in family(process):
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def started(log: Path, *command: str, **environment: str) -> Iterator["subprocess.Popen[Any]"]:
    """A program of the environment that runs until this is left, with all that it started."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLYWHEEL_", "PREFECT_"))}
    with log.open("w") as said:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / command[0]), *command[1:]], cwd=ROOT, env={**kept, **environment},
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        kill(process)


def wait_until(there: Callable[[], bool], process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert process.poll() is None, f"{process.args} ended"
        assert time.monotonic() < deadline, f"{process.args} did not come up"
        time.sleep(0.2)


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Nodes:
    """A cluster of two nodes with a core each; `second` is the one to kill."""

    def __init__(self, stack: ExitStack) -> None:
        subprocess.run([sys.executable, "-c", AGENTS], check=True)  # from a cold disk that alone can take so long
        folder = self.folder = Path(tempfile.mkdtemp(prefix="fw-ray-", dir="/tmp"))  # its sockets' names must be short
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        port, client = free_port(), free_port()
        self.address, self.client = f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
        head = (
            "--head", "--port", str(port), "--temp-dir", str(folder), "--dashboard-port", str(free_port()),
            "--ray-client-server-port", str(client),
        )  # fmt: skip
        self.node(stack, folder / "first.log", *head)
        self.second = self.node(stack, folder / "second.log", "--address", self.address)

    def node(self, stack: ExitStack, log: Path, *options: str) -> "subprocess.Popen[Any]":
        """A node that is up. Where all is busy and its raylet gives up, another."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            process = stack.enter_context(started(log, "ray", "start", *options, *SMALL, **QUIET))
            while process.poll() is None and "Timed out waiting" not in self.complaints():
                if "Ray runtime started" in log.read_text():
                    return process
                time.sleep(0.2)
            kill(process)
            for file in self.folder.glob("session_*/logs/raylet*.err"):
                file.unlink()
        raise AssertionError(log.read_text())

    def complaints(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("session_*/logs/raylet*.err"))

    def written(self) -> str:
        """All that Ray has written."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and not file.is_symlink()]
        return "\n".join(file.read_text(errors="replace") for file in files)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("prefect_ray")
    with ExitStack() as stack:
        yield Nodes(stack)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API's address of a Prefect server."""
    port, folder = free_port(), tmp_path_factory.mktemp("prefect")
    settings = {
        "PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }  # fmt: skip
    with started(folder / "log", "prefect", "server", "start", **settings) as server:
        wait_until(lambda: listening(port), server)
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture
def dataset(bare: Path, tmp_path: Path) -> Iterator[str]:
    """A frozen dataset in a home whose base is the bare model."""
    log = write_log(tmp_path / "log.jsonl", seed=1, conversations=40, day=1)
    with living_in(tmp_path / "home", STUDENT=str(bare), TEACHER="", THREADS="1"):
        ingest(JSONL(paths=(str(log),)))
        yield curate(WORKLOAD, CurateSpec())["dataset_id"]


def step(work: Path) -> int:
    """How far a student is by its last checkpoint; 0 where there is none."""
    with suppress(OSError), safe_open(work / "checkpoint.safetensors", "pt") as stored:
        return int(json.loads(stored.metadata()["state"])["step"])
    return 0


def makers(lock: Path) -> list[int]:
    """Pids of the runs that trained a student."""
    return [int(line.split()[1]) for line in lock.read_text().splitlines()]


def under_way(students: Path, node: "subprocess.Popen[Any]") -> Path | None:
    """The work folder of a student that a node is in the middle of."""
    there = {process.pid for process in family(node)}
    for lock in students.glob("*.lock"):
        work = lock.with_suffix(".work")
        if there & set(makers(lock)[-1:]) and 2 <= step(work) < STEPS - 8:
            return work
    return None


@pytest.mark.parametrize("through", ["address", "client"])
def test_a_stage_is_told_what_ray_shows_nowhere(nodes: Nodes, prefect: str, tmp_path: Path, through: str) -> None:
    secret = "hush-hush"
    url = f"postgresql://me:{secret}@db/flywheel"
    environment = {
        **QUIET, "FLYWHEEL_RAY": getattr(nodes, through), "PREFECT_API_URL": prefect, "FLYWHEEL_DATABASE": url,
        "FLYWHEEL_TEACHER_KEY": secret, "FLYWHEEL_MLFLOW": f"http://me:{secret}@mlflow", "FLYWHEEL_SQL_URL": url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url, "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    for _ in range(3):
        job = subprocess.run(
            [sys.executable, "-m", "tests.flows.ray_job", nodes.address], cwd=ROOT, capture_output=True, text=True,
            env=environment_of(tmp_path, **environment), timeout=PATIENCE,
        )  # fmt: skip
        if "Starting Ray client server failed" not in job.stderr:  # a slow machine: Ray waits 30 s for it
            break
    assert job.returncode == 0, job.stderr
    found = json.loads(job.stdout.splitlines()[-1])
    assert (found["told"]["database"], found["told"]["key"]) == (url, secret)
    assert secret not in found["told"]["begun with"], "others who may list processes would see it"
    shown = json.dumps(found["shown"])
    assert "HF_HUB_OFFLINE" in shown and "name='told'" in shown, "it shows environments and tasks"
    assert secret not in shown
    assert secret not in nodes.written()


def test_a_sweep_survives_a_node_and_trains_each_student_once(
    bare: Path, dataset: str, nodes: Nodes, prefect: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    command = ("distill", "--dataset-id", dataset, *STUDENT, *SWEEP, "--json")
    environment = {
        **QUIET, "FLYWHEEL_STUDENT": str(bare), "FLYWHEEL_RAY": nodes.address, "PREFECT_API_URL": prefect,
    }  # fmt: skip
    answer, log = tmp_path / "answer.json", tmp_path / "driver.log"
    seen: list[int] = []
    with answer.open("w") as said, log.open("w") as errors:
        driver = subprocess.Popen(
            [sys.executable, "-m", "flows", *command], cwd=ROOT, env=environment_of(home, **environment), stdout=said,
            stderr=errors, start_new_session=True,
        )  # fmt: skip
    try:
        while (work := under_way(home / "students", nodes.second)) is None:
            assert driver.poll() is None, log.read_text()
            time.sleep(0.02)
        dead = {process.pid for process in family(nodes.second)}
        kill(nodes.second)
        at = step(work)
        while driver.poll() is None:
            seen += [now for now in [step(work)] if now]
            time.sleep(0.02)
    finally:
        kill(driver)
    assert driver.returncode == 0, log.read_text()

    result: dict[str, Any] = json.loads(answer.read_text())
    with session(write=False) as db:
        rows = {row.id: row for row in db.scalars(select(Student))}
    assert len(rows) == 4 and all(Path(row.path).is_dir() for row in rows.values())
    assert {(row.spec["learning_rate"], row.spec["seed"]) for row in rows.values()} == {
        (rate, seed) for rate in (0.001, 0.002) for seed in (0, 1)
    }  # fmt: skip
    runs = {lock.stem: makers(lock) for lock in (home / "students").glob("*.lock")}
    assert {name: len(pids) for name, pids in runs.items()} == {name: 1 + (name == work.stem) for name in rows}
    assert runs[work.stem][0] in dead and runs[work.stem][1] not in dead
    assert max(seen) > at and min(seen) >= at, "what was under way began anew"
    assert all(row.report["steps"] == STEPS for row in rows.values())
    assert not [*home.glob("students/*.work"), *home.glob("students/*.partial")]

    losses = [row["validation_loss"] for row in result["sweep"]]
    assert losses == sorted(losses) and [row["seeds"] for row in result["sweep"]] == [2, 2]
    assert result["student_id"] == result["sweep"][0]["student_id"] in rows
    assert all(row.flow_run_id for row in rows.values()), "the nodes know of the flow run"


def test_without_ray_a_sweep_runs_here_and_its_table_is_shown(bare: Path, dataset: str, tmp_path: Path) -> None:
    command = ("distill", "--dataset-id", dataset, "--distill.learn", "imitation", "--distill.max_steps", "2")
    shown = flywheel(*command, "--sweep.seeds", "2", home=tmp_path / "home", FLYWHEEL_STUDENT=str(bare))
    assert shown.returncode == 0, shown.stderr
    head, row, first = shown.stdout.splitlines()[:3]
    assert head.split() == ["validation", "loss", "seeds", "best", "student"] and "±" in row and first == "{"
    assert len(list((tmp_path / "home" / "students").glob("*.lock"))) == 2


def test_what_ray_needs_is_said_in_a_line(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "prefect_ray"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('prefect_ray')")
    run = ("run", "--workload", "x")
    for environment, said in (
        ({"PYTHONPATH": str(hidden.parent)}, "pip install 'flywheel[ray]'"),
        ({}, "PREFECT_API_URL"),
    ):
        told = complaint(flywheel(*run, home=tmp_path, FLYWHEEL_RAY="127.0.0.1:9", **environment))
        assert "FLYWHEEL_RAY" in told and said in told


def test_ray_and_torchrun_at_once_are_refused(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        living_in(tmp_path, RAY="127.0.0.1:9", TORCHRUN="--nproc-per-node 2"),
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(SetupError, match=r"FLYWHEEL_TORCHRUN.*FLYWHEEL_RAY"),
    ):
        require()


def test_sqlite_is_refused_beyond_one_machine(tmp_path: Path) -> None:
    with living_in(tmp_path, RAY="ray://head:10001"), pytest.raises(SetupError, match=r"node-2.*FLYWHEEL_DATABASE"):
        of_others("node-2")
    with (
        living_in(tmp_path, RAY="ray://head:10001", DATABASE="postgresql://db/flywheel"),
        pytest.MonkeyPatch.context() as patch,
    ):
        from prefect.settings import PREFECT_API_URL, temporary_settings

        patch.delenv("PREFECT_API_URL", raising=False)
        with (
            temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}),
            pytest.raises(SetupError, match=r"node-2.*127\.0\.0\.1:4200"),
        ):
            of_others("node-2")
        with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
            of_others("node-2")
