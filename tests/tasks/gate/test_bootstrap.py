"""Oracles: scipy's own bounds for the p-values, Tango's bound and exact coverage for the whole."""

from typing import Any

import numpy as np
import pytest

from tasks.gate.bootstrap import Drawn
from tasks.metrics import LabelF1, RougeL, Score

MEAN = RougeL()


def drawn(differences: Any, sizes: Any = None, resamples: int = 9999) -> Drawn:
    """Conversations of `sizes` items that each differ by one number."""
    differences = np.asarray(differences, float)
    n = np.ones(len(differences)) if sizes is None else np.asarray(sizes, float)
    ours, theirs = (np.stack([values * n, n], 1) for values in (0.5 + differences, np.full(len(n), 0.5)))
    worth = float(n.sum() ** 2 / (n**2).sum())
    return Drawn(ours, theirs, MEAN.together, int(n.sum()), worth, resamples)


@pytest.mark.parametrize("skewed", [False, True])
def test_a_p_value_is_the_level_at_which_scipys_bound_is_reached(skewed: bool) -> None:
    rng = np.random.default_rng(3)
    differences = rng.exponential(0.1, 150) - 0.12 if skewed else rng.normal(0, 0.2, 150)
    found = drawn(differences, rng.integers(1, 5, 150))
    for confidence in (0.8, 0.95, 0.99):
        low, high = found.bounds(confidence)
        assert found.above(low) == pytest.approx(1 - confidence, rel=0.05)
        assert found.below(high) == pytest.approx(1 - confidence, rel=0.05)
        assert high == found.bca(confidence)[1] and (
            skewed or low == pytest.approx(found.bca(confidence)[0], abs=0.001)
        )
    assert found.above(-2) < 0.001 and found.above(2) > 0.999 and found.below(2) < 0.001 and found.below(-2) > 0.999


def test_the_difference_is_a_ratio_of_sums_over_conversations() -> None:
    found = drawn([0.3, -0.1], [1, 3])
    assert found.difference == pytest.approx((0.3 * 1 - 0.1 * 3) / 4)


def test_two_models_that_never_differ_are_no_surer_than_the_score_bound() -> None:
    few, many = drawn(np.zeros(40)), drawn(np.zeros(400))
    z2 = 1.6448536269514722**2
    assert few.bounds(0.95) == pytest.approx((-z2 / (40 + z2), 0.0))
    assert few.above(-0.03) > 0.05 > many.above(-0.03)
    assert drawn([0.0]).above(-0.03) > 0.4, "one conversation shows nothing"
    assert few.below(-0.03) == 1.0


def test_items_of_one_conversation_are_drawn_together() -> None:
    """The same items in fewer conversations are less sure."""
    rng = np.random.default_rng(5)
    values = rng.normal(0, 0.2, 60)
    alone = drawn(np.repeat(values, 4))
    together = drawn(values, np.full(60, 4))
    assert together.difference == pytest.approx(alone.difference)
    width = [found.bounds(0.95)[1] - found.difference for found in (alone, together)]
    assert width[1] == pytest.approx(2 * width[0], rel=0.2)


def test_bounds_miss_about_five_percent_on_each_side() -> None:
    rng = np.random.default_rng(7)
    missed = np.zeros(2)
    for _ in range(400):
        found = drawn(rng.beta(1.2, 2, 100) - rng.beta(1.2, 2, 100), resamples=499)
        missed += [found.above(0.0) <= 0.05, found.below(0.0) <= 0.05]
    assert missed / 400 == pytest.approx([0.05, 0.05], abs=0.03)


def test_how_many_items_would_tell_is_where_they_do() -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(0, 0.2, 100)
    found = drawn(values - values.mean())
    assert found.above(-0.03) > 0.05
    more = found.needed(0.03, 0.95)
    assert more is not None and more > 100
    times = -(-more // 100)
    assert drawn(np.tile(values - values.mean(), times + 1)).above(-0.03) <= 0.05
    assert drawn(np.full(50, -0.04)).needed(0.03, 0.95) is None


def test_a_metric_of_the_whole_set_is_computed_anew_in_each_resample() -> None:
    metric = LabelF1()
    ours = [Score(1.0, (n % 3, n % 3 if n % 7 else 0)) for n in range(90)]
    theirs = [Score(1.0, (n % 3, n % 3)) for n in range(90)]
    sums = metric.sums([*ours, *theirs])
    found = Drawn(sums[:90], sums[90:], metric.together, 90, 90.0, 999)
    assert -0.3 < found.bounds(0.95)[0] < found.difference < found.bounds(0.95)[1] <= 0
