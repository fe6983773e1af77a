"""Mentions replaced: whatever is replaced, the call still says what the question says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.mentions import Mentions, mentions, replaced, said, unheard


def row(question: str, **arguments: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": json.dumps(arguments)}}
    return {
        "messages": [{"role": "system", "content": "Copy."}, {"role": "user", "content": question}],
        "expected": {"role": "assistant", "content": None, "tool_calls": [call]},
    }  # fmt: skip


def arguments(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["expected"]["tool_calls"][0]["function"]["arguments"])
    return found


def question(row: dict[str, Any]) -> str:
    text: str = row["messages"][-1]["content"]
    return text


SAID = [
    ("a table in {city} for {people} at {time}", {"city": "Hilt", "people": "9", "time": "noon"}),
    ("is there anything in {city} for {people}", {"city": "São Paulo", "people": "2"}),
    ("book the {place}", {"place": "Old Oak"}),
]
ROWS = [row(words.format(**values), **values) for words, values in SAID]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (row("a table in Paris", city="Paris", code="PAR"), "a value that followed from another"),
        (row("from Paris to Paris", city="Paris"), "which of the two is it"),
        (row("a table in Parisian style", city="Paris"), "a part of a word"),
        (row("New York", city="New York", state="York"), "one lies in the other"),
        (row("a table for 9", people=9), "no text"),
        (row("Copy", verb="Copy"), "not the user's word"),
        (row("nothing", empty=""), "empty"),
    ],
)
def test_a_row_is_left_alone_where_a_value_is_not_said_once_as_it_is(given: dict[str, Any], why: str) -> None:
    if why == "not the user's word":
        given["messages"][0]["content"], given["messages"][1]["content"] = "Copy", "this"
    assert mentions(given) == []
    assert Mentions([given], 1.0, 0).varied(0, 0) is None


def test_no_call_and_one_that_cannot_be_read_have_no_mentions() -> None:
    said_no = {"messages": ROWS[0]["messages"], "expected": {"role": "assistant", "content": "Hilt"}}
    broken = row("a table in Hilt", city="Hilt")
    broken["expected"]["tool_calls"][0]["function"]["arguments"] = '{"city": "Hilt"'
    listed = row("a table in Hilt")
    listed["expected"]["tool_calls"][0]["function"]["arguments"] = '["Hilt"]'
    assert [mentions(one) for one in (said_no, broken, listed)] == [[], [], []]


@given(st.integers(0, 50), st.integers(0, 2))
def test_every_value_is_said_by_the_new_question_and_nothing_else_changes(epoch: int, number: int) -> None:
    before, after = ROWS[number], Mentions(ROWS, 1.0, 0).varied(number, epoch)
    assert after is not None
    words, values = SAID[number]
    assert arguments(after).keys() == values.keys()
    assert question(after) == words.format(**arguments(after))
    assert after["messages"][0] == before["messages"][0]
    assert question(before) == words.format(**values), "the row itself stays"


texts = st.text("ab é{\\\"'", min_size=1, max_size=8)


@given(texts, texts)
def test_any_text_can_stand_in_any_place(city: str, people: str) -> None:
    chosen = [(m, {"city": city, "people": people, "time": "noon"}[m.slot[1]]) for m in mentions(ROWS[0])]
    after = replaced(ROWS[0], chosen)
    assert question(after) == f"a table in {city} for {people} at noon"
    assert arguments(after) == {"city": city, "people": people, "time": "noon"}
    assert [said(ROWS[0], m) for m, _ in chosen] == ["Hilt", "9", "noon"]


def test_values_are_those_of_the_argument_and_new_ones_as_often_as_customers_bring_new_ones() -> None:
    """Each title is sung once, each month is said by many."""
    rows = [row(f"play song {n} in month{n % 12}", title=f"song {n}", month=f"month{n % 12}") for n in range(240)]
    made, heard = Mentions(rows, 0.4, seed=3), {f"song {n}" for n in range(240)}
    assert unheard(made.values["book", "title"]) == 1 and unheard(made.values["book", "month"]) == 0
    kept = 0
    for number in range(240):
        for epoch in range(5):
            after = arguments(made.varied(number, epoch) or rows[number])
            assert after["month"] in {f"month{n}" for n in range(12)}
            kept += after["title"] == f"song {number}"
            assert all(word == "song" or int(word) < 240 for word in after["title"].split())
            assert len(after["title"].split()) == 2
    assert kept / 1200 == pytest.approx(0.6, abs=0.05)
    titles = [arguments(one)["title"] for n in range(240) if (one := made.varied(n, 0))]
    assert any(title not in heard for title in titles)
