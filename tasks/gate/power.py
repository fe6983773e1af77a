"""How large a holdout should be: so large that a student who is truly as good is promoted with the chance asked for.

It is found before anything is run, from what the gate's spec says: margins, slices, the confidence, and `spread`, how
much a student differs from its reference from item to item. The tests' statistics are taken to be normal, with Tango's
variance under the margin for shares (`proportions.py`), and are drawn a few thousand times; the share of draws in which
Holm's procedure shows all of them is the power, and a bisection finds where it is enough, even if the draws were lucky
by two of their standard errors. The tests are drawn independently of each other. Really they go up and down together,
for a slice is a part of the whole: that only helps them to succeed together.
"""

from collections.abc import Sequence
from math import ceil

from tasks.gate.proportions import variance_at

DRAWS, SEED = 4000, 0
MOST = 10_000_000


def recommended(
    tests: Sequence[tuple[float, float]],
    spread: float,
    alpha: float,
    power: float,
    family: int,
    binary: bool = True,
    independent: float = 1.0,
) -> int:
    """Items of the holdout.

    Args:
        tests: Margin, and share of the holdout, of each test.
        spread: Standard deviation of an item's difference between two models that are equally good: the root of the
            share of items on which they differ, where items are right or wrong.
        family: All tests that are corrected for (`holm.py`).
        binary: Whether items are right or wrong.
        independent: How many independent items an item is worth (`proportions.effective` over their number).
    """
    import numpy as np
    from scipy.stats import norm

    margins, shares = np.array(tests, np.float64).T
    variance = spread**2
    at_margin = np.array([variance_at(variance / 2, variance / 2, -m) if binary else variance for m in margins])
    luck = np.random.default_rng(SEED).standard_normal((DRAWS, len(tests)))
    levels = alpha / (family - np.arange(len(tests)))
    limits = norm.isf(levels)  # of the statistics, largest first

    def enough(n: int) -> bool:
        away = margins * np.sqrt(n * independent * shares)
        statistics = (np.sqrt(variance) * luck + away) / np.sqrt(at_margin)
        shown = np.sort(statistics, axis=1)[:, ::-1] >= limits
        share = shown.all(axis=1).mean()
        return bool(share - 2 * np.sqrt(share * (1 - share) / DRAWS) >= power)

    low, high = 0, 64
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return MOST
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return ceil(high)
