"""DPO by TRL's trainer, against its equation: what the reference is, what is kept of a run that was killed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.engines.chat import load_tokenizer
from tasks.lessons import DPO
from tasks.lessons.preferences import Stage
from tests.tasks.lessons.toy import adapter_of, answer_logp, learned_model

PAIRS = [
    {"prompt_ids": [5 + (7 * n + i) % 40 for i in range(4)], "chosen_ids": [9 + n % 3, 10], "rejected_ids": [20, 21, 4]}
    for n in range(12)
]


def logps(model: Any) -> list[tuple[float, ...]]:
    sides = ("chosen_ids", "rejected_ids")
    return [tuple(answer_logp(model, pair["prompt_ids"], pair[side]) for side in sides) for pair in PAIRS]


def stage(bare: Path, work: Path, progress: Any = None) -> Stage:
    return Stage(load_tokenizer(bare), PAIRS, work, 2, 0, progress)


@pytest.mark.parametrize("adapter", ["lora", "dora", "pissa"])
def test_the_loss_is_equation_7_with_the_student_before_it_as_the_reference(
    bare: Path, tmp_path: Path, adapter: Any
) -> None:
    once, twice = (DPO(beta=0.3, learning_rate=3e-2, epochs=n, batch_size=len(PAIRS)) for n in (1, 2))
    model = learned_model(adapter, tmp_path)
    reference = logps(model)
    first = once.prefer(model, stage(bare, tmp_path / "once"))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5), "at first it is its own reference"
    margins = [
        0.3 * ((chosen - chosen_before) - (rejected - rejected_before))
        for (chosen, rejected), (chosen_before, rejected_before) in zip(logps(model), reference, strict=True)
    ]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    second = twice.prefer(learned_model(adapter, tmp_path), stage(bare, tmp_path / "twice"))
    assert second["loss"] == pytest.approx(expected, abs=1e-4) and expected < math.log(2) - 0.01
    assert second["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert (second["name"], second["pairs"], second["steps"]) == ("dpo", 12, 2)


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one_and_writes_nowhere_else(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = DPO(learning_rate=1e-3, epochs=2, batch_size=4)

    class Killed(Exception):
        pass

    def weights(work: Path, *kills: int) -> dict[str, torch.Tensor]:
        for kill in (*kills, math.inf):

            def progress(done: int, total: int, what: str, kill: float = kill) -> None:
                assert total == 6 and what.startswith("prefer, loss")
                if done == kill:
                    raise Killed

            model = learned_model("lora", tmp_path)
            try:
                spec.prefer(model, stage(bare, work, progress))
            except Killed:
                continue
        return adapter_of(model)

    unbroken, broken = weights(tmp_path / "a"), weights(tmp_path / "b", 3, 5)
    assert unbroken.keys() == broken.keys() == adapter_of(learned_model("lora", tmp_path)).keys(), "no second adapter"
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)
    assert not list((tmp_path / "here").iterdir())
