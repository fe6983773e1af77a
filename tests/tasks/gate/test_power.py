import pytest
from statsmodels.stats.power import NormalIndPower

from tasks.gate.power import recommended


def test_one_test_of_a_mean_needs_what_the_textbook_says() -> None:
    """Oracle: statsmodels' power of a one-sample z-test."""
    due = NormalIndPower(ddof=0).solve_power(0.03 / 0.25, alpha=0.05, power=0.8, ratio=0, alternative="larger")
    assert recommended([(0.03, 1.0)], 0.25, 0.05, 0.8, 1, binary=False) == pytest.approx(due, rel=0.07)


def test_more_tests_smaller_slices_and_longer_conversations_need_more() -> None:
    whole, slice_ = (0.03, 1.0), (0.1, 0.2)
    alone = recommended([whole], 0.3, 0.05, 0.8, 1)
    assert alone < recommended([whole, slice_], 0.3, 0.05, 0.8, 2) < recommended([whole, slice_], 0.3, 0.05, 0.8, 9)
    assert recommended([whole], 0.3, 0.05, 0.8, 1, independent=0.5) == pytest.approx(2 * alone, rel=0.01)
    assert recommended([whole], 0.3, 0.05, 0.9, 1) > alone
