"""Exact match: the answer says the same, letter by letter."""

from typing import Any


def words(message: dict[str, Any]) -> str:
    """What a message says, without the white space around it; "" where it only calls."""
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content.strip() if isinstance(content, str) else ""


def exact_match(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal words but for white space around them, and the same calls in the same order with the same argument text.

    Stricter than `tool_call`, which compares what the arguments mean.
    """
    return words(answer) == words(expected) and _letters(answer) == _letters(expected)


def _letters(message: dict[str, Any]) -> list[tuple[str, str]]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [(str(f.get("name")), str(f.get("arguments")).strip()) for f in functions]
