"""KTO by TRL's trainer, against its equations."""

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from infra.engines.chat import load_tokenizer
from tasks.lessons import KTO
from tasks.lessons.kto import exchanged
from tasks.lessons.preferences import Stage
from tests.tasks.lessons.toy import answer_logp, learned_model

THUMBS = [
    {"prompt_ids": [5 + (7 * n + i) % 40 for i in range(4)], "completion_ids": [9 + n % 5, 10, 11], "label": n % 3 > 0}
    for n in range(12)
]


def test_the_loss_is_equation_8_with_both_kinds_weighing_the_same(bare: Path, tmp_path: Path) -> None:
    beta, tokenizer = 0.3, load_tokenizer(bare)
    model = learned_model("lora", tmp_path)
    drawn = exchanged(Random(0).sample(THUMBS, 12), 12)

    def logps(key: str) -> list[float]:
        return [answer_logp(model, row["prompt_ids"], row[key]) for row in drawn]

    before = logps("completion_ids"), logps("KL_completion_ids")

    def prefer(epochs: int, model: Any) -> dict[str, Any]:
        spec = KTO(beta=beta, learning_rate=3e-2, epochs=epochs, batch_size=12)
        return spec.prefer(model, Stage(tokenizer, THUMBS, tmp_path / str(epochs), 9, 0, None))

    first = prefer(1, model)
    assert first["loss"] == pytest.approx((8 * 0.5 + 4 * 2 * 0.5) / 12, abs=1e-5), "4 disliked weigh as 8 liked"
    rewards, others = (
        [now - then for now, then in zip(logps(key), old, strict=True)]
        for key, old in zip(("completion_ids", "KL_completion_ids"), before, strict=True)
    )
    z = max(0.0, sum(others) / len(others))
    losses = [
        1 - _sigmoid(beta * (reward - z)) if row["label"] else 2 * (1 - _sigmoid(beta * (z - reward)))
        for row, reward in zip(drawn, rewards, strict=True)
    ]
    second = prefer(2, learned_model("lora", tmp_path))
    assert second["loss"] == pytest.approx(sum(losses) / 12, abs=1e-4) and second["loss"] < first["loss"] - 0.01
    assert {key: second[key] for key in ("name", "liked", "disliked", "steps")} == {
        "name": "kto", "liked": 8, "disliked": 4, "steps": 2,
    }  # fmt: skip


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_each_request_is_given_the_answer_before_its_own_within_a_batch() -> None:
    rows = [{"completion_ids": [n]} for n in range(5)]
    assert [row["KL_completion_ids"] for row in exchanged(rows, 2)] == [[1], [0], [3], [2], [4]]
