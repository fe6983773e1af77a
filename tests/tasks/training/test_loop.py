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
import torch

from tasks.lessons.imitation import imitate
from tasks.lessons.lesson import Loss
from tasks.training.examples import plan
from tasks.training.loop import Trainer, pace
from tests.tasks.lessons.toy import EXAMPLES, small_model
from tests.tasks.training import job

ROOT = Path(__file__).parents[3]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def imitation(model: Any, group: Any, at: float) -> Loss:
    return imitate(model, group)


def run(folder: Path, *die_at: str, by: tuple[str, ...] = (), lesson: str = "logits") -> "subprocess.Popen[str]":
    folder.mkdir()
    command = [sys.executable, *by, "-m", "tests.tasks.training.job", str(folder), lesson, *die_at]
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


def test_own_answers_are_those_of_one_process_in_two(tmp_path: Path) -> None:
    running = {
        "one": run(tmp_path / "one", lesson="on_policy"),
        "two": run(tmp_path / "two", by=TWO, lesson="on_policy"),
    }
    for name, process in running.items():
        said, _ = process.communicate()
        assert process.returncode == 0, f"{name}: {said}"
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in running)
    assert two["curve"] == pytest.approx(one["curve"], abs=1e-4)
    assert two["history"] == one["history"]


def test_each_of_two_processes_holds_half_of_a_sharded_base_and_steps_as_one_that_holds_all(tmp_path: Path) -> None:
    command = [sys.executable, *TWO, "-m", "tests.tasks.training.held", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trainer = Trainer(small_model(), job.SPEC, tmp_path, imitation)
    losses = [trainer.learn(EXAMPLES[n : n + 6], 0.5) for n in range(0, 18, 6)]
    for process in (0, 1):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["held"] == pytest.approx(0.5, abs=0.01)
        assert found["losses"] == pytest.approx(losses, abs=1e-5)


def test_another_seed_gives_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    adapters = []
    for seed in (0, 1):
        monkeypatch.setattr(job, "SPEC", replace(job.SPEC, seed=seed))
        (tmp_path / str(seed)).mkdir()
        adapters.append(job.train(tmp_path / str(seed)))
    assert not all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


@pytest.mark.parametrize(
    ("lesson", "hard", "dora"), [("logits", 4.0, False), ("logits", 1.0, True), ("on_policy", 1.0, False)]
)
def test_hard_cases_own_answers_and_vectors_are_gone_on_with_as_well(
    tmp_path: Path, lesson: str, hard: float, dora: bool
) -> None:
    torch.set_num_threads(1)
    teach = job.lesson(lesson)

    class Killed(Exception):
        pass

    def kill_at(step: int) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            if done == step:
                raise Killed

        return progress

    def weights(work: Path, *kills: int) -> dict[str, torch.Tensor]:
        work.mkdir()
        for kill in (*kills, math.inf):
            trainer = Trainer(small_model(dora), replace(job.SPEC, hard=hard), work, teach)
            try:
                trainer.run(EXAMPLES[:18], EXAMPLES[18:], kill_at(kill))
            except Killed:
                continue
        return {n: p.detach() for n, p in trainer.adapter.items()}

    unbroken, broken = weights(tmp_path / "a"), weights(tmp_path / "b", 3, 7)
    assert unbroken.keys() == broken.keys()
    assert all(torch.equal(unbroken[n], broken[n]) for n in unbroken)
    assert any(p.abs().max() > 0 for n, p in unbroken.items() if "lora_B" in n)


def test_what_the_student_gets_wrong_is_drawn_more_often_in_the_next_epoch_and_steps_stay(tmp_path: Path) -> None:
    drawn: list[tuple[bool, int]] = []  # whether it is hard now, and how many are

    def teach(model: Any, group: Any, at: float) -> Loss:
        drawn.extend((e.row in trainer.hard, len(trainer.hard)) for e in group)
        return imitate(model, group)

    spec = replace(job.SPEC, epochs=25, hard=4.0)
    trainer = Trainer(small_model(), spec, tmp_path, teach)
    trainer.run(EXAMPLES, [], None)
    assert trainer.step == sum(map(len, plan(lambda _: EXAMPLES, spec.batch_tokens, 0, 25, 0, trainer.packed)))
    some = [(hard, n) for hard, n in drawn if 2 < n < 22]
    each = {hard: sum(1 / (n if hard else 24 - n) for was, n in some if was is hard) for hard in (True, False)}
    assert some and 2.5 < each[True] / each[False] < 6


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
