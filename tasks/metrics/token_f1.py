"""Token F1: how many words an answer shares with the expected one, whatever their order (SQuAD's measure: P. Rajpurkar
et al., EMNLP 2016). Articles count here: dropping them is English only."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.metrics.exact_match import words
from tasks.metrics.metric import Answered, Metric, Score
from tasks.metrics.tool_call import ToolCall

TOKEN = re.compile(r"[^\W_]+")
CALLS = ToolCall()


@dataclass(frozen=True)
class TokenF1(Metric):
    """Of the words; where a call is due or made, the call decides, and its words are free."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["token_f1"] = "token_f1"

    def score(self, one: Answered) -> Score:
        if (by_call := of_calls(one)) is not None:
            return by_call
        given, due = tokens(words(one.answer)), tokens(words(one.expected))
        shared = (Counter(given) & Counter(due)).total()
        return Score(f1(shared, len(given), len(due)))


def of_calls(one: Answered) -> Score | None:
    """The score of an answer that is due to call, or calls; None for words in the place of words."""
    if one.answer.get("tool_calls") or one.expected.get("tool_calls"):
        return Score(float(CALLS.right(one)))
    return None


def tokens(text: str) -> list[str]:
    """Words and numbers, in small letters, of any script."""
    return TOKEN.findall(text.lower())


def f1(shared: int, given: int, due: int) -> float:
    """Harmonic mean of shared / given and shared / due; 1 where both are empty."""
    return 2 * shared / (given + due) if given + due else 1.0
