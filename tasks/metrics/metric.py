"""What a metric is: it gives each answer a value from 0 to 1, and says what the values of many come to.

What many come to is a function of sums: of the values and their number for a mean, of true and false positives for an
F1. So whatever the metric, `sums` of conversations that are drawn again and again (`gate/bootstrap.py`) are added up,
and `together` is taken of what that gives. Higher is better, also where the name is an error's or a perplexity's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

Message = dict[str, Any]


class Answered(NamedTuple):
    """An item of the holdout and what a model answered.

    Attributes:
        row: As frozen (`tasks/dataset/cases.py`), with all tools, and the request's `response_format` if it has one.
        probability: What the model gives its answer, where its engine says so.
        surprise: Nats of the expected answer under the model, where its engine says so.
    """

    row: Mapping[str, Any]
    answer: Message
    probability: float | None = None
    surprise: float | None = None

    @property
    def expected(self) -> Message:
        message: Message = self.row["expected"]
        return message

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self.row.get("tools") or ()


class Score(NamedTuple):
    """An answer's value, from 0 to 1, and what more it takes to say what many come to."""

    value: float
    evidence: tuple[float, ...] = ()


class Metric(ABC):
    """The base of the menu. A metric is a frozen dataclass with its options and a `name`.

    Attributes:
        binary: Its values are 0 or 1 and come to their share, of which statistics know more than of a mean.
    """

    name: str
    binary: ClassVar[bool] = False

    @abstractmethod
    def score(self, one: Answered) -> Score | None:
        """An answer's score; None where the metric says nothing of such an item."""

    def scores(self, answered: Sequence[Answered]) -> list[Score | None]:
        """All of them; for metrics that ask several at a time."""
        return [self.score(one) for one in answered]

    def sums(self, scores: Sequence[Score]) -> "NDArray[Any]":
        """What is added up, float64 (n, k): here the values, and how many."""
        import numpy as np

        return np.array([(score.value, 1.0) for score in scores], np.float64).reshape(-1, 2)

    def together(self, sums: "NDArray[Any]") -> "NDArray[Any]":
        """What sums (..., k) come to, (...), from 0 to 1; nan where there is nothing to divide by."""
        return divided(sums[..., 0], sums[..., 1])


def divided(part: "NDArray[Any]", whole: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    found: NDArray[Any] = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
    return found
