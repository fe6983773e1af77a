"""The table of feedback, line by line."""

from datetime import UTC, datetime
from typing import Any

import pytest

from infra.database.jsontext import number_of
from infra.database.policy import WEIGHTS, judge, of_conversation
from infra.database.records import feedback
from infra.database.tables import Feedback

ANSWER = {"role": "assistant", "content": "lost_card"}
RIGHT = {"role": "assistant", "content": "stolen_card"}
PIN = {"role": "assistant", "content": "pin"}


def said(kind: str, value: Any, at: int = 1, **more: Any) -> Feedback:
    record = {"record_id": "r", "timestamp": at, "kind": kind, "value": value, **more}
    return feedback(record, source="jsonl", at=datetime.now(UTC))


@pytest.mark.parametrize(
    ("opinions", "rule", "answer", "rejected"),
    [
        ([], "nothing", None, None),
        ([said("thumb", 1)], "praise", None, None),
        ([said("thumb", -1)], "objection", None, ANSWER),
        ([said("rating", 2)], "objection", None, ANSWER),
        ([said("rating", 3)], "nothing", None, None),
        ([said("rating", 4)], "praise", None, None),
        ([said("rating", 9, scale=[0, 10])], "praise", None, None),
        ([said("rating", 9, scale=[10, 0])], "objection", None, ANSWER),
        ([said("rating", 0.1, metric="jaccard")], "nothing", None, None),
        ([said("thumb", 1), said("thumb", -1), said("rating", 5)], "objection", None, ANSWER),
        ([said("correction", "stolen_card"), said("thumb", -1)], "correction", RIGHT, ANSWER),
        ([said("correction", "stolen_card", 2), said("correction", "pin", 1)], "correction", RIGHT, ANSWER),
        ([said("correction", "lost_card")], "praise", None, None),
        ([said("preference", {"chosen": "lost_card", "rejected": "stolen_card"})], "praise", None, RIGHT),
        ([said("preference", {"chosen": "stolen_card", "rejected": "lost_card"})], "correction", RIGHT, ANSWER),
    ],
)
def test_each_line_of_the_table(opinions: list[Feedback], rule: Any, answer: Any, rejected: Any) -> None:
    for order in (opinions, opinions[::-1]):
        judgement = judge(ANSWER, order)
        assert (judgement.rule, judgement.answer, judgement.rejected) == (rule, answer, rejected)
    assert judgement.weight == WEIGHTS[rule]
    assert WEIGHTS["correction"] > WEIGHTS["praise"] > WEIGHTS["nothing"] > WEIGHTS["objection"] == 0


@pytest.mark.parametrize(
    ("opinions", "rule", "answer", "rejected"),
    [
        ([said("label", "stolen_card")], "label", RIGHT, ANSWER),
        ([said("label", " lost_card ")], "label", ANSWER, None),
        ([said("label", "stolen_card"), said("thumb", -1), said("thumb", 1)], "label", RIGHT, ANSWER),
        ([said("label", "off topic")], "nothing", None, None),
        ([said("label", "stolen_card", metric="topic")], "nothing", None, None),
        (
            [said("label", "stolen_card", 1), said("correction", "pin", 2)],
            "correction",
            {**RIGHT, "content": "pin"},
            ANSWER,
        ),
        ([said("label", "stolen_card", 2), said("correction", "pin", 1)], "label", RIGHT, ANSWER),
    ],
)
def test_a_label_that_is_one_of_the_answers_is_gold(
    opinions: list[Feedback], rule: Any, answer: Any, rejected: Any
) -> None:
    closed = {number_of("lost_card"), number_of("stolen_card")}
    judgement = judge(ANSWER, opinions, closed)
    assert (judgement.rule, judgement.answer, judgement.rejected) == (rule, answer, rejected)
    assert judge(ANSWER, [said("label", "stolen_card")]).rule == "nothing", "where there is no closed set"


def test_a_correction_stands_where_the_log_has_no_answer() -> None:
    assert judge(None, [said("correction", "stolen_card")]).answer == RIGHT


def test_a_correction_that_spells_the_same_call_otherwise_is_praise() -> None:
    def call(arguments: Any, call_id: str) -> dict[str, Any]:
        return {"tool_calls": [{"id": call_id, "function": {"name": "track", "arguments": arguments}}]}

    answer = {"role": "assistant", "content": None} | {
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "track", "arguments": '{"a": 1, "b": 2}'}}]
    }
    assert judge(answer, [said("correction", call({"b": 2, "a": 1}, "y"))]).rule == "praise"


def test_an_episode_is_not_the_record() -> None:
    assert of_conversation(said("thumb", -1, target="episode")) and not of_conversation(
        said("thumb", -1, target="record")
    )
