"""Perplexity of the expected answer under the artifact that is served: how surprised it is by what it should say.

It is told for UTF-8 bytes, not for tokens: models cut text into tokens differently, and perplexities of different
tokens cannot be compared. What the gate compares is its inverse, the geometric mean probability of a byte. Only an
engine that can score a text which it did not write says it (torch's can); with another it is absent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.metrics.exact_match import words
from tasks.metrics.metric import Answered, Metric, Score, divided
from tasks.metrics.tool_call import calls

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Perplexity(Metric):
    """An item's evidence is its nats, and its bytes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["perplexity"] = "perplexity"

    def score(self, one: Answered) -> Score | None:
        if one.surprise is None:
            return None
        said = words(one.expected) + "".join(f"{name}{arguments}" for name, arguments in calls(one.expected))
        size = max(1, len(said.encode()))
        return Score(math.exp(-max(0.0, one.surprise) / size), (one.surprise, size))

    def sums(self, scores: Sequence[Score]) -> "NDArray[Any]":
        import numpy as np

        return np.array([score.evidence for score in scores], np.float64).reshape(-1, 2)

    def together(self, sums: "NDArray[Any]") -> "NDArray[Any]":
        import numpy as np

        found: NDArray[Any] = np.exp(-divided(sums[..., 0], sums[..., 1]))
        return found
