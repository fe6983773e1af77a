"""Several tests at once: each test's level after S. Holm, "A simple sequentially rejective multiple test procedure",
Scandinavian Journal of Statistics 6, 1979.

The smallest of m p-values has to be within alpha / m, the next within alpha / (m - 1), and so on to the first that is
not; what comes after it is not shown either. So with a chance of 1 - alpha at least, nothing is said to be shown that
is not so, however the tests depend on each other.

A student is promoted where all tests show what they should. For that alone no correction would be needed: of tests
that must all succeed, the one that should not is passed with a chance of alpha (R. L. Berger, Technometrics 24, 1982).
Holm's makes true what the verdict says of each slice besides.

Tests that were picked from many by looking at the results count with all that they were picked from: Holm's procedure
is run over the whole family, with 1 for the p-value of each that was not picked. That is conservative twice: a p-value
that is set to 1 can only take from what is shown, and picked are those that look worst.

scipy has no Holm, and statsmodels' collects the process's garbage at each call, for a third of a second with torch
loaded; the tests hold this against it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Level(NamedTuple):
    """What a p-value is held against, and whether it is within that, as are all smaller ones.

    A test that comes after the first that failed is held against what that one failed.
    """

    alpha: float
    shown: bool


def holm(p_values: Sequence[float], alpha: float, family: int) -> list[Level]:
    """The level of each test.

    Args:
        family: How many tests there are, with those that are not in `p_values`.
    """
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    levels = [Level(0.0, False)] * len(p_values)
    alpha_now, shown = 0.0, True
    for rank, n in enumerate(order):
        if shown:
            alpha_now = alpha / (family - rank)
            shown = p_values[n] <= alpha_now
        levels[n] = Level(alpha_now, shown)
    return levels
