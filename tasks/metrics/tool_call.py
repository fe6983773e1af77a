"""Tool calls: the right functions with the right arguments, and none where none is due.

Arguments are compared one by one, as typed JSON values (the syntax tree of a call, as in the Berkeley Function Calling
Leaderboard, S. G. Patil et al., ICML 2025): numbers are one type (1 and 1.0 are equal), but 1, "1" and true are three
values; the order of keys means nothing, the order of a list does, unless the tool's schema says `uniqueItems`; strings
are trimmed. An argument that is left out has its schema's default, if there is one. What else means the same is said by
`alternatives`. Parallel calls may come in any order. Arguments that are no JSON object make a call that cannot be made:
it is equal to nothing, also where the expected call is the malformed one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.metrics.metric import Answered, Message, Metric, Score

Call = tuple[str, dict[str, str] | None]
"""A function, and its arguments as canonical JSON by name; None where they are malformed."""


@dataclass(frozen=True)
class ToolCall(Metric):
    """Exactly the expected calls; where none is expected, that none is made. The words are not looked at."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    binary: ClassVar[bool] = True

    name: Literal["tool_call"] = "tool_call"
    alternatives: Annotated[
        dict[str, list[list[Any]]],
        Field(
            description="Values of an argument that mean the same, by `function.argument`: "
            '{"ship.by": [["UPS", "ups"]]}; null among them: it may be left out instead'
        ),
    ] = field(default_factory=dict)

    def score(self, one: Answered) -> Score:
        return Score(float(self.right(one)))

    def right(self, one: Answered) -> bool:
        given, due = self.calls(one.answer, one.tools), self.calls(one.expected, one.tools)
        readable = all(arguments is not None for _, arguments in due)
        return readable and sorted(given, key=repr) == sorted(due, key=repr)

    def calls(self, message: Message, tools: Sequence[Mapping[str, Any]] = ()) -> list[Call]:
        """A message's calls, equal if they mean the same."""
        schemas = {}
        for tool in tools:
            function = tool.get("function", tool)
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            schemas[function.get("name")] = properties if isinstance(properties, dict) else {}
        found: list[Call] = []
        for name, arguments in calls(message):
            found.append((name, None if arguments is None else self._meant(name, arguments, schemas.get(name, {}))))
        return found

    def _meant(self, function: str, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, str]:
        """Each argument as canonical JSON of the first of its alternatives, in order of their names."""
        properties = {name: said for name, said in schema.items() if isinstance(said, dict)}
        defaults = {name: said["default"] for name, said in properties.items() if "default" in said}
        meant = {}
        for name in sorted({*arguments, *defaults}):
            value = _canonical(arguments[name] if name in arguments else defaults[name])
            if properties.get(name, {}).get("uniqueItems") and isinstance(value, list):
                value = sorted(value, key=_text)
            meant[name] = _text(value)
        for place, sets in self.alternatives.items():
            of, _, name = place.rpartition(".")
            for same in sets if of == function else ():
                texts = [_text(_canonical(value)) for value in same]
                if meant.get(name, "null") in texts:
                    meant[name] = texts[0]
        return {name: meant[name] for name in sorted(meant)}

    def parts(self, one: Answered) -> "CallScore":
        """The sub-scores of one answer."""
        given, due = self.calls(one.answer, one.tools), self.calls(one.expected, one.tools)
        if not due:
            return CallScore(False, bool(given), None, None, None)
        named = sorted(name for name, _ in given) == sorted(name for name, _ in due)
        return CallScore(True, bool(given), named, self.right(one), _share_of_arguments(given, due))


@dataclass(frozen=True)
class CallScore:
    """How one answer did, part by part. The last three are None where no call is due.

    Attributes:
        due: A call is expected.
        made: A call was made.
        function: The functions called are the expected ones.
        arguments: The arguments are right as well (so it implies `function`).
        share: Of the arguments, due or given, those that are right.
    """

    due: bool
    made: bool
    function: bool | None
    arguments: bool | None
    share: float | None


def summary(scores: Sequence[CallScore]) -> dict[str, float | None]:
    """Rates over items: functions and arguments right where calls are due; precision and recall of not calling.

    Precision: of the answers without a call, how many were due words. Recall: of the answers due words, how many made
    no call. None where there is nothing to divide by.
    """
    due = [s for s in scores if s.due]
    silent = [s for s in scores if not s.made]
    abstained = sum(not s.due for s in silent)
    return {
        "call_name": _ratio(sum(bool(s.function) for s in due), len(due)),
        "call_arguments": _ratio(sum(bool(s.arguments) for s in due), len(due)),
        "call_argument_share": _ratio(sum(s.share or 0.0 for s in due), len(due)),
        "abstention_precision": _ratio(abstained, len(silent)),
        "abstention_recall": _ratio(abstained, len(scores) - len(due)),
    }


def calls(message: Message) -> list[tuple[str, dict[str, Any] | None]]:
    """A message's calls as (function, arguments; None where they are malformed)."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return [(str(f.get("name")).strip(), _arguments(f.get("arguments"))) for f in functions]


def _share_of_arguments(given: Sequence[Call], due: Sequence[Call]) -> float:
    """Right arguments over all that are due or given, calls paired so that most are right; 1 where none has any.

    A call of another function, or one too many or too few, has all its arguments wrong, and counts as one more.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    right, pairs = np.zeros((len(due), len(given))), {}
    for i, (name, wanted) in enumerate(due):
        for j, (called, said) in enumerate(given):
            if name == called and wanted is not None and said is not None:
                right[i, j] = 1 + len(wanted.items() & said.items())
                pairs[i, j] = 1 + len({*wanted, *said})
    chosen = [(i, j) for i, j in zip(*linear_sum_assignment(right, maximize=True), strict=True) if (i, j) in pairs]
    alone = [due[i] for i in range(len(due)) if i not in {i for i, _ in chosen}]
    alone += [given[j] for j in range(len(given)) if j not in {j for _, j in chosen}]
    whole = sum(pairs[pair] for pair in chosen) + sum(1 + len(arguments or {}) for _, arguments in alone)
    return float(sum(right[pair] for pair in chosen) / whole)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _arguments(given: Any) -> dict[str, Any] | None:
    """Arguments (an object, or its JSON text; empty text is no arguments), or None."""
    try:
        value = json.loads(given.strip() or "{}", parse_constant=_refuse) if isinstance(given, str) else given
        _text(value)
        return value if isinstance(value, dict) else None
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


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
