"""How sure one is of the difference of two models by a metric that is no share: conversations are drawn again.

BCa (B. Efron, "Better bootstrap confidence intervals", JASA 82, 1987), by scipy: conversations are drawn with
replacement, whole and for both models alike, so the test is paired and what happens within a conversation may depend on
itself as it likes. Each model's sums are added up over what was drawn, and the metric is taken of the sums: a mean is a
ratio of two, a macro F1 is computed anew.

scipy gives bounds; Holm's correction wants p-values. The p-value of a difference is the level at which BCa's bound
falls on it: the formula of the bound solved for its level, with one more resample counted against the candidate (A. C.
Davison and D. V. Hinkley, Bootstrap Methods and their Application, 1997, section 4.2), so that it is never 0.

No bootstrap knows of what it has not seen: where two models agree on everything it is sure of it after three
conversations. So the difference is allowed another loss, of a whole item's value, at the rate that the score bound
still allows to what happened in none of so many items (`proportions.py`).
"""

from collections.abc import Callable
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from tasks.gate.proportions import Shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMAL = NormalDist()
RESAMPLES = 9999
AT_ONCE = 200_000  # numbers that are drawn at a time: they fit into a cache
SEED = 0


class Drawn:
    """The difference of two models, and its bootstrap.

    Args:
        ours, theirs: Sums of each conversation, float64 (c, k) (`Metric.sums`).
        together: What sums (..., k) come to (`Metric.together`).
        n: Items.
        worth: The independent items that they are worth (`proportions.effective`).
    """

    def __init__(
        self,
        ours: "NDArray[Any]",
        theirs: "NDArray[Any]",
        together: "Callable[[NDArray[Any]], NDArray[Any]]",
        n: int,
        worth: float,
        resamples: int = RESAMPLES,
    ) -> None:
        self.ours, self.theirs, self.together = ours, theirs, together
        self.n, self.worth, self.resamples = n, worth, resamples
        self.unseen = Shares(0, 0, n, worth)
        self.difference = float(self._difference(ours.sum(0), theirs.sum(0)))

    def above(self, difference: float) -> float:
        """The p-value of the true difference being at most this one."""
        import numpy as np

        unseen = 1.0 if difference >= self.difference else self.unseen.above(difference - self.difference)
        if self.certain:
            return unseen
        against = min(self.resamples, 1 + int(np.count_nonzero(self.distribution <= difference)))
        return max(unseen, self._level(against / (self.resamples + 1)))

    def below(self, difference: float) -> float:
        """The p-value of the true difference being at least this one."""
        import numpy as np

        if self.certain:
            return 0.0 if self.difference < difference else 1.0
        against = min(self.resamples, 1 + int(np.count_nonzero(self.distribution >= difference)))
        return 1 - self._level(1 - against / (self.resamples + 1))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """One-sided lower and one-sided upper bound, each at `confidence`."""
        low, high = self.bca(confidence)
        return min(low, self.difference + self.unseen.bounds(confidence)[0]), high

    def bca(self, confidence: float) -> tuple[float, float]:
        """The same by the bootstrap alone."""
        if self.certain:
            return self.difference, self.difference
        found = self._scipy(2 * confidence - 1, method="BCa", n_resamples=0, bootstrap_result=self._drawn)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    def needed(self, margin: float, confidence: float) -> int | None:
        """About how many items would show a difference above -margin, if all stays; None where none would."""
        if self.difference <= -margin:
            return None
        z2 = NORMAL.inv_cdf(confidence) ** 2
        room = self.difference + margin
        times = z2 * float(self.distribution.var()) / room**2
        unseen = z2 * (1 - min(room, 1)) / room
        return round(self.n * max(times, unseen / self.worth))

    @property
    def certain(self) -> bool:
        """Whether all that is drawn comes to the same, and there is nothing to take a bound of."""
        return len(self.ours) < 2 or float(self.distribution.max() - self.distribution.min()) < 1e-12

    @property
    def distribution(self) -> "NDArray[Any]":
        """The difference of each resample, (resamples,)."""
        found: NDArray[Any] = self._drawn.bootstrap_distribution
        return found

    @cached_property
    def _drawn(self) -> Any:
        return self._scipy(0.9, method="percentile", n_resamples=self.resamples)

    def _scipy(self, level: float, **options: Any) -> Any:
        import numpy as np
        from scipy.stats import bootstrap

        places = np.arange(len(self.ours))
        batch = max(1, AT_ONCE // len(places))
        return bootstrap(
            (places,), self._of_places, vectorized=True, axis=-1, batch=batch, confidence_level=level,
            rng=np.random.default_rng(SEED), **options,
        )  # fmt: skip

    def _of_places(self, places: "NDArray[Any]", axis: int = -1) -> "NDArray[Any]":
        """The difference in each row of conversations (..., c), which may come up several times."""
        import numpy as np

        rows = places.reshape(-1, places.shape[-1])
        size = len(self.ours)
        flat = (rows + size * np.arange(len(rows))[:, None]).ravel()
        times = np.bincount(flat, minlength=size * len(rows)).reshape(len(rows), size).astype(np.float64)
        found: NDArray[Any] = self._difference(times @ self.ours, times @ self.theirs)
        return found.reshape(places.shape[:-1])

    def _difference(self, ours: "NDArray[Any]", theirs: "NDArray[Any]") -> "NDArray[Any]":
        found: NDArray[Any] = self.together(ours) - self.together(theirs)
        return found

    def _level(self, share: float) -> float:
        """The level whose lower bound is the quantile `share` of the distribution."""
        skew, acceleration = self._shape
        above = NORMAL.inv_cdf(share) - skew
        bend = 1 + acceleration * above
        return NORMAL.cdf(above / bend - skew) if bend > 0 else NORMAL.cdf(-above)

    @cached_property
    def _shape(self) -> tuple[float, float]:
        """BCa's two corrections: of the median's place, and the acceleration, from leaving out one at a time."""
        import numpy as np

        below = np.count_nonzero(self.distribution < self.difference)
        ties = np.count_nonzero(self.distribution == self.difference)
        share = np.clip((below + ties / 2) / self.resamples, 1 / self.resamples, 1 - 1 / self.resamples)
        without = self._difference(self.ours.sum(0) - self.ours, self.theirs.sum(0) - self.theirs)
        pulls = without.mean() - without
        spread = float((pulls**2).sum()) ** 1.5
        return NORMAL.inv_cdf(float(share)), float((pulls**3).sum()) / (6 * spread) if spread else 0.0
