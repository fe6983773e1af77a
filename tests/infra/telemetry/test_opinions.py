"""Who says what, and what is kept of it."""

from typing import Any

import pytest

from infra.database.jsontext import Rejected
from infra.telemetry.opinions import is_expected, opinion


@pytest.mark.parametrize(
    ("said", "metric", "kept"),
    [
        (True, "helpful", ("thumb", 1)), ("No", "helpful", ("thumb", -1)), ("thumbs up", None, ("thumb", 1)),
        ("Incorrect", "grade", ("thumb", -1)), (True, "hallucination", ("thumb", -1)), ("no", "is toxic", ("thumb", 1)),
        (True, "no_hallucination", ("thumb", 1)), (4, "stars", ("rating", 4.0)), (1, "stars", ("rating", 1.0)),
        ("too long", "remark", ("label", "too long")), (["a"], "facts", ("label", '["a"]')),
    ],
)  # fmt: skip
def test_a_person_says(said: Any, metric: str | None, kept: tuple[str, Any]) -> None:
    assert opinion(said, metric) == {"kind": kept[0], "value": kept[1], "metric": metric}


@pytest.mark.parametrize(
    ("said", "kept"),
    [(True, ("rating", 1.0)), ("no", ("rating", 0.0)), ("passed", ("rating", 1.0)), (0.5, ("rating", 0.5)),
     ("so so", ("label", "so so"))],
)  # fmt: skip
def test_a_judge_says(said: Any, kept: tuple[str, Any]) -> None:
    assert opinion(said, "hallucination", person=False) == {
        "kind": kept[0],
        "value": kept[1],
        "metric": "hallucination",
    }


def test_a_rating_without_a_name_is_of_no_known_scale_either() -> None:
    assert opinion(0.7, None) == {"kind": "rating", "value": 0.7, "metric": "evaluation"}


def test_nothing_is_no_opinion() -> None:
    with pytest.raises(Rejected, match="says nothing"):
        opinion("", "helpful")


def test_names_of_the_right_answer() -> None:
    assert is_expected("Ground Truth") and is_expected("expected_response") and not is_expected("expected_facts")
