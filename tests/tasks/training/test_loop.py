"""The same weights from the same run: in another process, killed and gone on with, and in two processes at once."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.lessons.imitation import imitate
from tasks.lessons.lesson import Loss
from tasks.training.loop import Trainer, pace
from tests.tasks.lessons.toy import EXAMPLES, small_model
from tests.tasks.training import job

ROOT = Path(__file__).parents[3]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def imitation(model: Any, group: Any, at: float) -> Loss:
    return imitate(model, group)


def run(folder: Path, *die_at: str, by: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    folder.mkdir()
    command = [sys.executable, *by, "-m", "tests.tasks.training.job", str(folder), *die_at]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_weights_are_the_same_to_the_bit_however_often_a_run_is_killed_and_the_curve_in_two_processes(
    tmp_path: Path,
) -> None:
    running = {
        "unbroken": run(tmp_path / "unbroken"),
        "killed": run(tmp_path / "killed", "1", "3", "write", "epoch", "6", "epoch", "11", "write"),
        "two": run(tmp_path / "two", by=TWO),
    }
    for name, process in running.items():
        said, _ = process.communicate()
        assert process.returncode == 0, f"{name}: {said}"
    unbroken, killed, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in running)
    assert killed["digest"] == unbroken["digest"]
    assert killed["history"] == unbroken["history"]
    assert len(killed["curve"]) < len(unbroken["curve"]), "it did not go on, but began anew"
    assert two["curve"] == pytest.approx(unbroken["curve"], abs=1e-5)
    assert two["history"] == unbroken["history"]


def test_another_seed_gives_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    adapters = []
    for seed in (0, 1):
        monkeypatch.setattr(job, "SPEC", replace(job.SPEC, seed=seed))
        (tmp_path / str(seed)).mkdir()
        adapters.append(job.train(tmp_path / str(seed)))
    assert not all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_training_learns_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(small_model(), replace(job.SPEC, epochs=30), tmp_path, imitation)
    before = trainer.validate(EXAMPLES[18:])
    trainer.run(EXAMPLES, EXAMPLES[18:], None)
    after = trainer.validate(EXAMPLES[18:])
    assert after < before - 0.3
    assert after == pytest.approx(min(h["validation_loss"] for h in trainer.history), abs=1e-4)


def test_the_rate_rises_over_the_warm_up_and_falls_by_the_schedule() -> None:
    shares = (0.05, 0.1, 0.5, 1.0)
    for schedule, expected in {
        "cosine": (0.5, 0.5 * (1 + math.cos(0.1 * math.pi)), 0.5, 0.0),
        "linear": (0.5, 0.9, 0.5, 0.0),
        "constant": (0.5, 1.0, 1.0, 1.0),
    }.items():
        assert [pace(at, schedule, 0.1) for at in shares] == pytest.approx(expected, abs=1e-12)
        assert pace(1e-9, schedule, 0.0) == pytest.approx(1.0)


def test_validation_is_the_mean_over_answer_tokens_whatever_the_batches(tmp_path: Path) -> None:
    found = []
    for batch_tokens in (64, 1000):
        trainer = Trainer(small_model(), replace(job.SPEC, batch_tokens=batch_tokens), tmp_path, imitation)
        found.append(trainer.validate(EXAMPLES))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(imitate(small_model(), EXAMPLES).mean.item(), rel=1e-5)
