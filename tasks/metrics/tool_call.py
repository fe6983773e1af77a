"""Tool calls: the right functions with the right arguments, and none where none is due.

Arguments are compared as JSON values. Numbers are one type (1 and 1.0 are equal), but 1, "1" and true are three
values; the order of keys means nothing, the order of a list does; strings are trimmed. Parallel calls may come in any
order. Arguments that are no JSON object make a call that cannot be made: it is equal to nothing, also where the
expected call is the malformed one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def tool_call(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Exactly the expected calls; where none is expected, that none is made. The words are not looked at."""
    given, due = calls(answer), calls(expected)
    readable = all(arguments is not None for _, arguments in due)
    return readable and sorted(given, key=repr) == sorted(due, key=repr)


def calls(message: dict[str, Any]) -> list[tuple[str, str | None]]:
    """A message's calls as (function, arguments as canonical JSON, or None where they are malformed)."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [(str(f.get("name")).strip(), _arguments(f.get("arguments"))) for f in functions]


@dataclass(frozen=True)
class CallScore:
    """How one answer did, part by part. `name` and `arguments` are None where no call is due.

    Attributes:
        due: A call is expected.
        made: A call was made.
        name: The functions called are the expected ones.
        arguments: The arguments are right as well (so it implies `name`).
    """

    due: bool
    made: bool
    name: bool | None
    arguments: bool | None


def parts(answer: dict[str, Any], expected: dict[str, Any]) -> CallScore:
    """The sub-scores of one answer."""
    given, due = calls(answer), calls(expected)
    if not due:
        return CallScore(False, bool(given), None, None)
    named = sorted(name for name, _ in given) == sorted(name for name, _ in due)
    return CallScore(True, bool(given), named, tool_call(answer, expected))


def summary(scores: Sequence[CallScore]) -> dict[str, float | None]:
    """Rates over items: names and arguments right where calls are due; precision and recall of not calling.

    Precision: of the answers without a call, how many were due words. Recall: of the answers due words, how many made
    no call. None where there is nothing to divide by.
    """
    due = [s for s in scores if s.due]
    silent = [s for s in scores if not s.made]
    abstained = sum(not s.due for s in silent)
    return {
        "call_name": _share(sum(bool(s.name) for s in due), len(due)),
        "call_arguments": _share(sum(bool(s.arguments) for s in due), len(due)),
        "abstention_precision": _share(abstained, len(silent)),
        "abstention_recall": _share(abstained, len(scores) - len(due)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _arguments(given: Any) -> str | None:
    """Arguments (an object, or its JSON text; empty text is no arguments) as canonical JSON, or None."""
    try:
        value = json.loads(given.strip() or "{}", parse_constant=_refuse) if isinstance(given, str) else given
        return json.dumps(_canonical(value), sort_keys=True) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, str):
        return value.strip()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
