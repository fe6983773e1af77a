"""Shares of right answers: how sure one is, and how sure the difference of two on the same items is.

One share: Wilson's score interval. Two shares on the same items: Tango's score test and bounds (T. Tango, "Equivalence
test and confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17,
1998, 891-908), which hold their level also where the two models hardly ever disagree, as good students and teachers do;
Wald's bounds collapse to zero width there. A paired exact test was rejected: it conditions on the disagreements, and
says nothing about a margin. Neither scipy nor statsmodels has a paired difference of shares against a margin.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import copysign, inf, sqrt
from statistics import NormalDist

NORMAL = NormalDist()


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a share (E. B. Wilson, JASA 22, 1927); (0, 1) where n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    found = binomtest(round(right), n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Shares:
    """Two models' right and wrong answers to the same items.

    Attributes:
        won: Items that the candidate has right and the reference wrong.
        lost: Items that the reference has right and the candidate wrong.
        n: All items.
        worth: The independent items that they are worth (`effective`).
    """

    won: int
    lost: int
    n: int
    worth: float

    @property
    def difference(self) -> float:
        """p(candidate) - p(reference)."""
        return (self.won - self.lost) / self.n

    def above(self, difference: float) -> float:
        """The p-value of the true difference being at most this one."""
        return NORMAL.cdf(-self._score(difference))

    def below(self, difference: float) -> float:
        """The p-value of the true difference being at least this one."""
        return NORMAL.cdf(self._score(difference))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """One-sided lower and one-sided upper bound, each at `confidence`."""
        share = self.worth / self.n
        return tango(self.won * share, self.lost * share, self.worth, confidence)

    def needed(self, margin: float, confidence: float) -> int | None:
        """About how many items would show a difference above -margin, if the shares stay; None where none would."""
        more = needed(self.won, self.lost, self.n, margin, confidence)
        return round(more * self.n / self.worth) if more else None

    def _score(self, difference: float) -> float:
        share = self.worth / self.n
        return _score(self.won * share, self.lost * share, self.worth, difference)


def tango(won: float, lost: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided lower and one-sided upper bound of p(candidate) - p(reference), each at `confidence`.

    Together they are the two-sided interval at 2 * confidence - 1.

    Args:
        won: Items that the candidate has right and the reference wrong; need not be whole (see `effective`).
        lost: Items that the reference has right and the candidate wrong.
        n: All items.
    """
    z = NORMAL.inv_cdf(confidence)
    return _where(won, lost, n, z), _where(won, lost, n, -z)


def _where(won: float, lost: float, n: float, z: float) -> float:
    """The difference at which the score statistic, which falls as the difference grows, is z."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(won, lost, n, middle) > z else (low, middle)
    return (low + high) / 2


def _score(won: float, lost: float, n: float, difference: float) -> float:
    """Tango's statistic, equation 7: how many standard errors the data lie above `difference`."""
    above = won - lost - n * difference
    variance = n * variance_at(won / n, lost / n, difference)
    return above / sqrt(variance) if variance > 1e-12 else copysign(inf, above) if above else 0.0


def variance_at(won: float, lost: float, difference: float) -> float:
    """The variance of an item's difference if the true one is `difference`, for shares of items won and lost.

    `q` is the maximum-likelihood estimate of P(only the reference is right) under that difference.
    """
    b = (2 - won + lost) * difference - won - lost
    c = -lost * difference * (1 - difference)
    q = (sqrt(max(0.0, b * b - 8 * c)) - b) / 4
    return 2 * q + difference * (1 - difference)


def effective(clusters: Iterable[object]) -> float:
    """How many independent items clustered ones are worth at the least (L. Kish, Survey Sampling, 1965, section 5.4).

    n² / Σ m², where m are the clusters' sizes: answers within a conversation are taken to stand or fall together. That
    is the worst case, it needs no estimate from few disagreements, and a better answer can never make it worse.
    """
    sizes = Counter(clusters).values()
    return sum(sizes) ** 2 / sum(m * m for m in sizes) if sizes else 0.0


def needed(won: float, lost: float, n: float, margin: float, confidence: float = 0.95) -> int | None:
    """About how many items would show a difference above -margin if the shares stay; None where no number would."""
    if n == 0 or (won - lost) / n <= -margin:
        return None
    low, high = 0.0, 1.0
    while tango(won * high, lost * high, n * high, confidence)[0] <= -margin:
        low, high = high, 2 * high
        if high > 1e6:
            return None
    for _ in range(30):
        middle = (low + high) / 2
        enough = tango(won * middle, lost * middle, n * middle, confidence)[0] > -margin
        low, high = (low, middle) if enough else (middle, high)
    return round(n * high)
