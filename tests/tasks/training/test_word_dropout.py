"""Word dropout: what is left is the question without some words, and with all that the answer needs."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.word_dropout import without
from tests.tasks.training.test_mentions import arguments, question, row

QUESTION = "why was my card declined in the shop in  São Paulo, at noon?"


def routed(said: str, *before: dict[str, Any]) -> dict[str, Any]:
    messages = [*before, {"role": "user", "content": said}]
    return {"messages": messages, "expected": {"role": "assistant", "content": "declined_card_payment"}}


@given(st.text("ab é\n,.", max_size=30), st.floats(0, 0.99), st.integers(0, 99))
def test_what_is_left_are_words_of_the_question_in_their_order_and_never_none(
    said: str, share: float, seed: int
) -> None:
    after = without(routed(said), share, Random(seed))
    if after is not None:
        words, left = iter(said.split()), question(after).split()
        assert all(word in words for word in left), "a subsequence"
        assert 0 < len(left) < len(said.split())


@given(st.floats(0, 0.99), st.integers(0, 99))
def test_a_word_that_the_answer_says_stays(share: float, seed: int) -> None:
    before = row(QUESTION, city="São Paulo", time="noon")
    after = without(before, share, Random(seed)) or before
    assert all(value in question(after) for value in arguments(before).values())
    assert question(before) == QUESTION, "the row itself stays"


@pytest.mark.parametrize("value", ["12 Long Lane\nHilt", "C:\\new\\table", 'the "Old Oak"', "a\ttab"])
def test_a_value_stays_however_json_writes_it(value: str) -> None:
    for seed in range(40):
        after = without(row(f"please send it to {value} at once", to=value, number=[9]), 0.9, Random(seed))
        assert after is not None and value in question(after)


def test_about_as_many_words_are_left_out_as_asked() -> None:
    said = "one two three four five six seven eight nine ten"
    left = [len(question(without(routed(said), 0.3, Random(n)) or routed(said)).split()) for n in range(400)]
    assert sum(left) / len(left) == pytest.approx(7, abs=0.3)
    assert without(routed(said), 0.0, Random(0)) is None


def test_only_what_users_say_loses_words() -> None:
    before = routed(QUESTION, {"role": "system", "content": "Route the question."}, {"role": "user", "content": None})
    for seed in range(20):
        after = without(before, 0.9, Random(seed))
        assert after is None or after["messages"][:2] == before["messages"][:2]
