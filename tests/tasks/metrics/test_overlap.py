"""Token F1 and ROUGE-L; the oracle of the second is Google's package."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.metrics import RougeL, TokenF1
from tasks.metrics.token_f1 import tokens
from tests.tasks.metrics.test_tool_call import calling, saying, value

texts = st.lists(st.sampled_from(["a", "b", "c", "Dog", "12", "d_e", "it's", ","]), max_size=12).map(" ".join)
SCORER = RougeScorer(["rougeL"])


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_rouge_l_is_the_reference_packages(one: str, other: str) -> None:
    due = SCORER.score(other, one)["rougeL"].fmeasure
    empty = not one.strip(" ,") and not other.strip(" ,")
    assert value(RougeL(), saying(one), saying(other)) == pytest.approx(1 if empty else due)


@given(texts, texts)
def test_token_f1_is_symmetric_and_knows_no_order(one: str, other: str) -> None:
    found = value(TokenF1(), saying(one), saying(other))
    assert found == value(TokenF1(), saying(other), saying(" ".join(sorted(one.split(), reverse=True))))
    assert value(RougeL(), saying(one), saying(other)) <= found + 1e-12
    assert (found == 1) == (sorted(tokens(one)) == sorted(tokens(other)))


def test_squads_own_example_and_other_scripts() -> None:
    assert value(TokenF1(), saying("the cat sat"), saying("The cat, sitting")) == pytest.approx(2 / 3)
    assert value(TokenF1(), saying("где заказ"), saying("Где, мой заказ?")) == pytest.approx(0.8)


def test_where_a_call_is_due_or_made_it_decides() -> None:
    for metric in (TokenF1(), RougeL()):
        assert value(metric, calling(("f", {}), content="well"), calling(("f", {}))) == 1
        assert value(metric, saying("f"), calling(("f", {}))) == value(metric, calling(("f", {})), saying("f")) == 0
