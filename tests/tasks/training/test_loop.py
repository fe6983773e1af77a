"""A training run that is killed against one that is not, and what is kept of a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.lessons import Logits, OnPolicy
from tasks.lessons.imitation import imitate
from tasks.lessons.lesson import Desk, Teach
from tasks.students import Causal
from tasks.training.examples import plan
from tasks.training.loop import Trainer
from tests.tasks.lessons.toy import EXAMPLES, TOKENIZER, small_model, small_teacher, teacher_of

SPEC = Causal(epochs=3, batch_tokens=64, learning_rate=1e-2, checkpoint_steps=2, rank=4, alpha=8)


def imitation(model: Any, group: Any, at: float) -> torch.Tensor:
    return imitate(model, group)


def own_answers() -> Teach:
    prompts = {e.row: e.ids[: e.prompt] for e in EXAMPLES}
    desk = Desk(None, [], EXAMPLES, TOKENIZER, None, 0, None)  # type: ignore[arg-type]
    return OnPolicy(share=0.8, rate=0.6).beside(Logits().toward(teacher_of(EXAMPLES)), small_teacher(), prompts, desk)


@pytest.mark.parametrize(("lesson", "hard"), [("logits", 1.0), ("logits", 4.0), ("on_policy", 1.0)])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, lesson: str, hard: float) -> None:
    torch.set_num_threads(1)
    teach = own_answers() if lesson == "on_policy" else Logits().toward(teacher_of(EXAMPLES))

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
            trainer = Trainer(small_model(), replace(SPEC, hard=hard), work, teach)
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

    def teach(model: Any, group: Any, at: float) -> torch.Tensor:
        drawn.extend((e.row in trainer.hard, len(trainer.hard)) for e in group)
        return imitate(model, group)

    spec = replace(SPEC, epochs=25, hard=4.0)
    trainer = Trainer(small_model(), spec, tmp_path, teach)
    trainer.run(EXAMPLES, [], None)
    assert trainer.step == sum(map(len, plan(EXAMPLES, 64, 0, 25, 0)))
    some = [(hard, n) for hard, n in drawn if 2 < n < 22]
    each = {hard: sum(1 / (n if hard else 24 - n) for was, n in some if was is hard) for hard in (True, False)}
    assert some and 2.5 < each[True] / each[False] < 6


def test_training_learns_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(small_model(), replace(SPEC, epochs=30), tmp_path, imitation)
    before = trainer.validate(EXAMPLES[18:])
    trainer.run(EXAMPLES, EXAMPLES[18:], None)
    after = trainer.validate(EXAMPLES[18:])
    assert after < before - 0.3
    assert after == pytest.approx(min(h["validation_loss"] for h in trainer.history), abs=1e-4)
