"""Metrics of a whole set: macro F1, calibration, perplexity; scikit-learn is the oracle where it has them."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tasks.metrics import Answered, Calibration, LabelF1, Perplexity
from tasks.scoring.scorecards import value_of
from tests.tasks.metrics.test_tool_call import calling, saying

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=20, max_size=60)


def told(metric: Any, items: list[Answered]) -> float | None:
    return value_of(metric, [score for score in metric.scores(items) if score is not None])


@settings(deadline=None)
@given(labels)
def test_label_f1_is_scikit_learns_macro_f1_over_the_expected_labels(drawn: list[tuple[str, str]]) -> None:
    items = [Answered({"expected": saying(due)}, saying(given)) for due, given in drawn]
    due, given_ = zip(*drawn, strict=True)
    wanted = f1_score(due, given_, labels=sorted(set(due)), average="macro", zero_division=0)
    assert told(LabelF1(), items) == pytest.approx(wanted)


def test_an_open_set_has_no_labels_and_a_call_is_one() -> None:
    open_set = [Answered({"expected": saying(f"{n % 20}")}, saying("1")) for n in range(99)]
    assert told(LabelF1(), open_set) is None
    call = [Answered({"expected": calling(("f", {"a": 1, "b": 2}))}, calling(("f", {"b": 2, "a": 1})))] * 9
    assert told(LabelF1(), call) == 1.0


def test_calibration_is_the_mean_distance_over_bins() -> None:
    def sure(probability: float | None, right: bool) -> Answered:
        return Answered({"expected": saying("yes")}, saying("yes" if right else "no"), probability)

    items = [sure(0.95, n < 9) for n in range(10)] + [sure(0.6, n < 3) for n in range(10)] + [sure(None, False)]
    assert told(Calibration(), items) == pytest.approx(1 - (10 * 0.05 + 10 * 0.3) / 20)
    assert told(Calibration(), [sure(1.0, True), sure(0.1, False), sure(0.0, False)]) == pytest.approx(1 - 0.1 / 3)
    assert told(Calibration(), items[-1:]) is None
    rng = np.random.default_rng(0)
    honest = [sure(p, bool(rng.random() < p)) for p in rng.random(4000)]
    assert told(Calibration(), honest) == pytest.approx(1, abs=0.03)


def test_perplexity_is_per_byte_over_the_whole_set_and_absent_where_no_engine_says_it() -> None:
    items = [Answered({"expected": saying("ü")}, saying("x"), None, nats) for nats in (0.4, 1.6)]
    assert told(Perplexity(), items) == pytest.approx(math.exp(-2.0 / 4))
    assert Perplexity().score(items[1]) is not None
    assert told(Perplexity(), [Answered({"expected": saying("a")}, saying("a"))]) is None
