"""Quality: whether an answer does what was asked; what the gate compares unless told otherwise."""

from typing import Any

from tasks.metrics.exact_match import words
from tasks.metrics.tool_call import tool_call


def quality(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Right calls where calls are due (words beside them are free); else no call, and the same words.

    Same words means equal but for white space around them, which suits closed answers (an intent, a label, a fixed
    phrase). Free text that may be said in many ways needs a metric of its own.
    """
    if not tool_call(answer, expected):
        return False
    return bool(expected.get("tool_calls")) or words(answer) == words(expected)
