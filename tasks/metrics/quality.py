"""Quality: whether an answer does what was asked; what the gate compares unless told otherwise."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.metrics.exact_match import words
from tasks.metrics.metric import Answered, Metric, Score
from tasks.metrics.tool_call import ToolCall

CALLS = ToolCall()


@dataclass(frozen=True)
class Quality(Metric):
    """Right calls where calls are due (words beside them are free); else no call, and the same words.

    Same words means equal but for white space around them, which suits closed answers (an intent, a label, a fixed
    phrase). Free text that may be said in many ways needs a metric of its own.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    binary: ClassVar[bool] = True

    name: Literal["quality"] = "quality"

    def score(self, one: Answered) -> Score:
        due = bool(one.expected.get("tool_calls"))
        return Score(float(CALLS.right(one) and (due or words(one.answer) == words(one.expected))))
