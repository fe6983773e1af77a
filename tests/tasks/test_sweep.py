"""What a sweep trains, and which of its students it calls the best."""

from typing import Any

import pytest

from infra.settings import SetupError
from tasks.students import Causal, Classifier
from tasks.sweep import SweepSpec, best, table, variants

SPEC = Causal(rank=8, seed=3)


def student(name: str, *losses: float, **more: Any) -> dict[str, Any]:
    return {"student_id": name, "history": [{"validation_loss": loss} for loss in losses], **more}


def test_without_a_sweep_there_is_one_student_and_no_table() -> None:
    tried = variants(SPEC, SweepSpec())
    assert [v.students for v in tried] == [[SPEC]]
    assert best(tried, [student("a", 1.0)]) == student("a", 1.0)


def test_every_combination_is_tried_with_every_seed() -> None:
    over = {"rank": [4, 16], "learn": [{"name": "imitation"}, {"name": "logits", "weight": 2}]}
    tried = variants(SPEC, SweepSpec(over, seeds=2))
    found = [(one.rank, one.learn.name, one.seed) for v in tried for one in v.students if isinstance(one, Causal)]
    assert found == [(r, name, s) for r in (4, 16) for name in ("imitation", "logits") for s in (3, 4)]


def test_the_best_has_the_lowest_mean_and_not_the_luckiest_seed() -> None:
    tried = variants(SPEC, SweepSpec({"rank": [4, 16]}, seeds=2))
    made = [student("lucky", 2.0, 0.1), student("unlucky", 1.9), student("b", 0.9, 0.8, 0.95), student("c", 0.6)]
    winner = best(tried, made)
    assert winner["student_id"] == "c" and winner["history"] == made[3]["history"]
    assert [row["options"] for row in winner["sweep"]] == [{"rank": 16}, {"rank": 4}]
    assert [row["validation_loss"] for row in winner["sweep"]] == [0.7, 1.0]
    assert [row["spread"] for row in winner["sweep"]] == pytest.approx([0.14142, 1.27279], abs=1e-5)
    assert [row["student_id"] for row in winner["sweep"]] == ["c", "lucky"]
    assert table(winner["sweep"])[0] == {
        "rank": "16", "validation loss": "0.70000 ± 0.14142", "seeds": "2", "best student": "c",
    }  # fmt: skip


def test_a_stage_on_preferences_is_measured_after_it() -> None:
    tried = variants(SPEC, SweepSpec(seeds=2))
    made = [student("a", 0.5, prefer={"validation_loss": 0.9}), student("b", 0.7, prefer={"validation_loss": 0.8})]
    assert best(tried, made)["student_id"] == "b"


@pytest.mark.parametrize(
    ("spec", "over", "said"),
    [
        (SPEC, {"rnak": [4]}, r"'rnak' is no option of a causal student; known are .*rank"),
        (SPEC, {"rank": []}, r"'rank' has no values"),
        (SPEC, {"rank": [4, 0]}, r"rank 0: Input should be greater than or equal to 1"),
        (SPEC, {"seed": [1, 2]}, r"sweep\.seeds"),
        (SPEC, {"base": ["a", "b"]}, r"cannot be compared"),
        (SPEC, {"max_length": [64, 128]}, r"cannot be compared"),
        (Classifier(), {"rank": [4]}, r"'rank' is no option of a classifier student"),
    ],
)
def test_what_cannot_be_tried_is_named(spec: Any, over: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        variants(spec, SweepSpec(over))
