"""Label F1: of each answer of a closed set its F1, and their mean (macro), in which a rare label counts as a frequent.

A label is an answer's meaning (`policy.meaning`), words or calls. The mean is over the labels that are expected; an
answer that is none of them is a miss of what was due, and nobody's false alarm. Where labels are more than a thousand,
or do not come up five times each on average, they are no closed set (`tasks/dataset/answers.py`), and nothing is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from infra.database.jsontext import number_of
from infra.database.policy import meaning
from tasks.dataset.answers import MOST, TIMES
from tasks.metrics.metric import Answered, Metric, Score, divided

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelF1(Metric):
    """An item's value is whether its label is right; its evidence the numbers of the expected and the given label."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["label_f1"] = "label_f1"

    def score(self, one: Answered) -> Score:
        due, given = (float(number_of(meaning(message)) >> 12) for message in (one.expected, one.answer))
        return Score(float(due == given), (due, given))

    def scores(self, answered: Sequence[Answered]) -> list[Score | None]:
        found = [self.score(one) for one in answered]
        labels = len({score.evidence[0] for score in found})
        closed = labels <= MOST and labels * TIMES <= len(found)
        return [score if closed else None for score in found]

    def sums(self, scores: Sequence[Score]) -> "NDArray[Any]":
        """True positives, expected and given of each label, (n, 3 * labels); 52 bits tell labels apart."""
        import numpy as np

        due, given = np.array([score.evidence for score in scores], np.float64).reshape(-1, 2).T
        labels = np.unique(due)
        is_due, is_given = due[:, None] == labels, given[:, None] == labels
        return np.concatenate([is_due & is_given, is_due, is_given], axis=1).astype(np.float64)

    def together(self, sums: "NDArray[Any]") -> "NDArray[Any]":
        import numpy as np

        right, due, given = np.split(sums, 3, axis=-1)
        each = np.where(due > 0, np.nan_to_num(divided(2 * right, due + given)), 0.0)
        return divided(each.sum(-1), (due > 0).sum(-1))
