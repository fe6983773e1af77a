"""A training run that is killed against one that is not, and what is kept of a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.lessons import Logits
from tasks.lessons.imitation import imitate
from tasks.students import Causal
from tasks.training.loop import Trainer, pace
from tests.tasks.lessons.toy import EXAMPLES, small_model, teacher_of

SPEC = Causal(epochs=3, batch_tokens=64, learning_rate=1e-2, checkpoint_steps=2, rank=4, alpha=8)


def imitation(model: Any, group: Any, at: float) -> torch.Tensor:
    return imitate(model, group)


@pytest.mark.parametrize("dora", [False, True], ids=["matrices", "matrices and vectors"])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, dora: bool) -> None:
    torch.set_num_threads(1)
    teach = Logits().toward(teacher_of(EXAMPLES))

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
            trainer = Trainer(small_model(dora), SPEC, work, teach)
            try:
                trainer.run(EXAMPLES[:18], EXAMPLES[18:], kill_at(kill))
            except Killed:
                continue
        return {n: p.detach() for n, p in trainer.adapter.items()}

    unbroken, broken = weights(tmp_path / "a"), weights(tmp_path / "b", 3, 7)
    assert unbroken.keys() == broken.keys()
    assert all(torch.equal(unbroken[n], broken[n]) for n in unbroken)
    assert any(p.abs().max() > 0 for n, p in unbroken.items() if "lora_B" in n)
    first = dict(small_model(dora).named_parameters())
    assert all(not torch.equal(p, first[n]) for n, p in unbroken.items()), "all of it is trained"


def test_training_learns_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(small_model(), replace(SPEC, epochs=30), tmp_path, imitation)
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
        spec = Causal(schedule=schedule, warmup=0.1)
        assert [pace(spec, at) for at in shares] == pytest.approx(expected, abs=1e-12)
        assert pace(replace(spec, warmup=0.0), 1e-9) == pytest.approx(1.0)
