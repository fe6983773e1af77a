"""Exact match: the answer says the same, letter by letter."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tasks.metrics.metric import Answered, Metric, Score


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Equal words but for white space around them, and the same calls in the same order with the same argument text.

    Stricter than `ToolCall`, which compares what the arguments mean.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    binary: ClassVar[bool] = True

    name: Literal["exact_match"] = "exact_match"

    def score(self, one: Answered) -> Score:
        same = words(one.answer) == words(one.expected) and _letters(one.answer) == _letters(one.expected)
        return Score(float(same))


def words(message: dict[str, Any]) -> str:
    """What a message says, without the white space around it; "" where it only calls."""
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content.strip() if isinstance(content, str) else ""


def _letters(message: dict[str, Any]) -> list[tuple[str, str]]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [(str(f.get("name")), str(f.get("arguments")).strip()) for f in functions]
