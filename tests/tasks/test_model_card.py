"""What a platform team reads of a version before it serves it."""

from datetime import UTC, datetime
from typing import Any

from tasks.model_card import Made, Split, model_card

MADE = Made(
    "shop", "int4 PTQ (gptq)", "08c5bade87c10a1b", "ab" * 32,
    [Split("train", 1554, datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 25, tzinfo=UTC)),
     Split("holdout", 546, datetime(2026, 11, 25, tzinfo=UTC), datetime(2026, 11, 26, 18, 30, tzinfo=UTC))],
    {"correction": 46}, {"learn.name": "logits"}, {"method.bits": 4, "format": "gguf"},
)  # fmt: skip


def rate(quality: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {"quality": quality, "low": low, "high": high, "n": n}


METRICS = {
    "metric": "quality", **rate(0.938, 0.914, 0.955, 546), "bytes": 3_000_000, "tokens_per_second": None,
    "slices": {
        "calls": rate(0.95, 0.92, 0.97, 400), "tool:a|b": rate(0.70, 0.60, 0.79, 90), "words": rate(0.9, 0.8, 0.96, 56),
    },
}  # fmt: skip
REFERENCE = {"metric": "quality", **rate(0.947, 0.925, 0.963, 546), "bytes": 14_800_000}


def card_of(**changed: Any) -> str:
    return model_card(MADE, {**METRICS, **changed}, {"teacher": REFERENCE}, "promote", ["no worse by over 3 points"])


def section(card: str, name: str) -> str:
    return card.split(f"\n## {name}")[1].split("\n## ")[0]


def test_the_data_s_window_the_recipe_and_the_verdict_are_said() -> None:
    card = card_of()
    assert card.startswith("# shop: int4 PTQ (gptq)\n") and "ab" * 32 in card
    assert "| holdout | 546 | 2026-11-25 00:00 UTC | 2026-11-26 18:30 UTC |" in section(card, "Data")
    assert "Feedback used: 46 correction." in card
    assert "| student learn.name | `logits` |\n| method.bits | `4` |" in section(card, "Recipe")
    assert section(card, "Verdict").startswith(": promote\n\n- no worse by over 3 points")


def test_candidate_and_reference_stand_side_by_side_and_what_nobody_measured_is_left_out() -> None:
    table = section(card_of(), "Scorecard")
    assert "|  | int4 PTQ (gptq) | teacher |" in table
    assert "| quality (quality) | 93.8% [91.4%, 95.5%] | 94.7% [92.5%, 96.3%] |" in table
    assert "| bytes of weights | 3,000,000 | 14,800,000 |" in table
    assert "tokens a second" not in table


def test_a_slice_is_weak_where_all_of_its_interval_lies_below_the_whole() -> None:
    card = card_of()
    assert section(card, "Known weak slices").strip() == (
        "- tool:a|b: 70.0% [60.0%, 79.0%] of 90 items, against 93.8% on the whole"
    )
    assert "| tool:a\\|b | 90 |" in section(card, "Slices"), "a bar in a name breaks no table"
    none = card_of(slices={"words": rate(0.9, 0.8, 0.96, 56)})
    assert "None of 1 slices is shown to be worse" in section(none, "Known weak slices")


def test_a_candidate_that_was_not_scored_has_a_card_too() -> None:
    card = model_card(MADE, {}, {}, "inconclusive", [])
    assert "not scored" in card and "None of 0 slices" in card
