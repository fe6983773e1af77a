"""A student trained by torchrun: the one that a single process makes; what fails is said, what is cancelled is gone."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from infra.settings import SetupError
from tasks.curate import CurateSpec, curate
from tasks.distill import distill
from tasks.ingest import ingest
from tasks.sources import JSONL
from tasks.students import Causal
from tasks.training.launch import fit, running
from tests.conftest import living_in
from tests.shop_log import WORKLOAD, write_log

ROOT = Path(__file__).parents[3]
SPEC = Causal(epochs=1, rank=4, alpha=8, learning_rate=1e-3, batch_tokens=512)


@pytest.fixture(scope="module")
def dataset(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("launch")
    log = write_log(folder / "log.jsonl", seed=1, conversations=40, day=1)
    with living_in(folder / "home", STUDENT=str(bare), TEACHER=str(bare), THREADS="1"):
        ingest(JSONL(paths=(str(log),)))
        yield curate(WORKLOAD, CurateSpec())["dataset_id"]


def under_torchrun(patch: pytest.MonkeyPatch, arguments: str, shard: bool = False) -> None:
    from infra.settings import settings

    patch.setenv("FLYWHEEL_TORCHRUN", arguments)
    patch.setenv("FLYWHEEL_SHARD", str(shard))
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("PYTHONWARNINGS", "ignore")
    settings.cache_clear()


def test_two_processes_that_shard_the_base_make_the_student_that_one_makes(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from safetensors.torch import load_file

    alone = distill(dataset, SPEC)
    path = Path(alone["path"])
    one = load_file(path / "model.safetensors")
    path.rename(path.with_name("one"))
    steps: list[tuple[int, int, str]] = []
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "flywheel.training"):
        under_torchrun(patch, "--nproc-per-node 2", shard=True)
        several = distill(dataset, SPEC, progress=lambda *of: steps.append(of))
    assert (several["processes"], several["student_id"]) == (2, alone["student_id"])
    assert several["history"][0]["validation_loss"] == pytest.approx(alone["history"][0]["validation_loss"], abs=2e-5)
    two = load_file(Path(several["path"]) / "model.safetensors")
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert [done for done, _, what in steps if what.startswith("distill")] == list(range(1, alone["steps"] + 1))


def test_embeddings_are_not_trained_beside_a_base_that_is_sharded(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_torchrun(monkeypatch, "--nproc-per-node 2", shard=True)
    with pytest.raises(SetupError, match=r"unset FLYWHEEL_SHARD or distill\.embeddings"):
        distill(dataset, replace(SPEC, embeddings=True))


def test_what_went_wrong_in_a_process_is_one_line(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    under_torchrun(monkeypatch, "--nproc-per-node 1")
    with pytest.raises(SetupError, match=r"max_length=16 tokens; raise distill\.max_length"):
        fit(Causal(max_length=16), dataset, tmp_path, None)
    with caplog.at_level(logging.INFO, "flywheel.training"), pytest.raises(SetupError, match=r"--nonsense.*train\.log"):
        under_torchrun(monkeypatch, "--nonsense")
        fit(SPEC, dataset, tmp_path, None)
    assert "unrecognized arguments: --nonsense" in (tmp_path / "train.log").read_text()
    assert "unrecognized arguments: --nonsense" in caplog.text


CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', %r], start_new_session=True).wait()"
WORKER = (
    "import sys, os; print(os.getpid(), flush=True); from tasks.training.launch import end_with_input; end_with_input()"
)


def test_the_processes_of_a_killed_run_are_gone(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom tasks.training.launch import running\n"
        f"with running([sys.executable, '-c', {CHILD % WORKER!r}]) as child:\n"
        "    print(child.pid, child.stdout.readline(), flush=True)\n    time.sleep(600)"
    )
    us = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert us.stdout is not None
    child, worker = (int(pid) for pid in us.stdout.readline().split())
    assert psutil.pid_exists(child) and psutil.pid_exists(worker)
    os.kill(us.pid, signal.SIGKILL)
    us.wait()
    us.stdout.close()
    gone(worker)
    gone(child)


def test_a_cancelled_run_ends_its_processes_even_those_that_do_not_listen() -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.training.launch.GRACE", 0.5)
        with pytest.raises(KeyboardInterrupt), running([sys.executable, "-c", deaf]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "deaf\n"
            raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL


def gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.05)
