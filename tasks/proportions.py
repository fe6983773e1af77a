"""Shares of right answers: how sure one is, and how sure the difference of two on the same items is.

One share: Wilson's score interval. Two shares on the same items: Tango's score bounds (T. Tango, "Equivalence test and
confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17, 1998,
891-908), which hold their level also where the two models hardly ever disagree, as good students and teachers do;
Wald's bounds collapse to zero width there. A paired exact test was rejected: it conditions on the disagreements, and
says nothing about a margin.
"""

from collections import Counter
from collections.abc import Iterable
from math import copysign, inf, sqrt
from statistics import NormalDist


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a share (E. B. Wilson, JASA 22, 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    middle = (right + z2 / 2) / (n + z2)
    half = sqrt(z2 * (right * (n - right) / n + z2 / 4)) / (n + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def tango(won: float, lost: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided lower and one-sided upper bound of p(candidate) - p(reference), each at `confidence`.

    Together they are the two-sided interval at 2 * confidence - 1.

    Args:
        won: Items that the candidate has right and the reference wrong; need not be whole (see `effective`).
        lost: Items that the reference has right and the candidate wrong.
        n: All items.
    """
    z = NormalDist().inv_cdf(confidence)
    return _where(won, lost, n, z), _where(won, lost, n, -z)


def _where(won: float, lost: float, n: float, z: float) -> float:
    """The difference at which the score statistic, which falls as the difference grows, is z."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(won, lost, n, middle) > z else (low, middle)
    return (low + high) / 2


def _score(won: float, lost: float, n: float, difference: float) -> float:
    """Tango's statistic, equation 7: how many standard errors the data lie above `difference`.

    `q` is the maximum-likelihood estimate of P(only the reference is right) under that difference.
    """
    a = 2 * n
    b = (2 * n - won + lost) * difference - won - lost
    c = -lost * difference * (1 - difference)
    q = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    above = won - lost - n * difference
    variance = n * (2 * q + difference * (1 - difference))
    return above / sqrt(variance) if variance > 1e-12 else copysign(inf, above) if above else 0.0


def effective(clusters: Iterable[str]) -> float:
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
