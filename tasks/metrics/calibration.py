"""Calibration: whether an answer that is given 90 % is right in nine of ten.

The expected calibration error (M. P. Naeini et al., AAAI 2015; C. Guo et al., ICML 2017) is the mean distance, over ten
bins of the probability, between what a model is sure of and how often it is right. Only some engines say how sure they
are: the classifier's does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.metrics.metric import Answered, Metric, Score, divided
from tasks.metrics.quality import Quality

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
RIGHT = Quality()


@dataclass(frozen=True)
class Calibration(Metric):
    """One minus the error. An item's value is whether it is right (`Quality`), its evidence the probability."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["calibration"] = "calibration"

    def score(self, one: Answered) -> Score | None:
        return None if one.probability is None else Score(RIGHT.score(one).value, (one.probability,))

    def sums(self, scores: Sequence[Score]) -> "NDArray[Any]":
        """Items, probability and right ones of each bin, (n, 3 * BINS); a bin has its upper edge."""
        import numpy as np

        sure = np.array([score.evidence[0] for score in scores], np.float64)
        right = np.array([score.value for score in scores], np.float64)
        bins = np.clip(np.ceil(sure * BINS) - 1, 0, BINS - 1)[:, None] == np.arange(BINS)
        return np.concatenate([bins, bins * sure[:, None], bins * right[:, None]], axis=1).astype(np.float64)

    def together(self, sums: "NDArray[Any]") -> "NDArray[Any]":
        import numpy as np

        n, sure, right = np.split(sums, 3, axis=-1)
        return 1 - divided(np.abs(sure - right).sum(-1), n.sum(-1))
