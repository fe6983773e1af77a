"""What feedback makes of an answer: one table.

| said of the answer | imitated | in the holdout | weight | rejected sample |
|---|---|---|---|---|
| a correction | the correction | the correction | 2 | the answer, if it differs |
| a label that is an answer | the label | the label | 2 | the answer, if it differs |
| an objection: thumb down, rating in the lowest quarter | no | no | - | the answer |
| praise: thumb up, rating in the highest quarter | the answer | the answer | 1.5 | - |
| nothing | the answer | the answer | 1 | - |

The first line that applies counts, but of several corrections and labels the latest stands; one objection outweighs any
praise. A correction that repeats the answer is praise. A label is an answer where it is, word for word, one that the
workload gives and those are a closed set (a router's intents), and no metric is named: then it is the truth about the
request (gold), whether the answer was that or not. A preference is praise with a rejected sample where the chosen side
is the answer, a correction where it is not. Better than an answer that was objected to is the correction or the praised
answer of an equal request, and the teacher's, where it is asked again. A rating without a known scale (a metric's
number) and any other label say nothing here. What is said of one copy of a request and its answer is said of all. What
is said of a whole conversation is said of its answer only where there is just one: among several, nobody knows which
was meant. What is said before its interaction is logged waits for it; what is said of one that never comes stays where
it is, and `flywheel traffic` counts it.
"""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.database.jsontext import number_of
from infra.database.tables import Feedback

Rule = Literal["correction", "label", "objection", "praise", "nothing"]
WEIGHTS: dict[Rule, float] = {"correction": 2.0, "label": 2.0, "objection": 0.0, "praise": 1.5, "nothing": 1.0}
LOW, HIGH = 0.25, 0.75
SAID: tuple[Rule, ...] = ("correction", "label")
"""The rules by which a person says what is right."""


@dataclass(frozen=True)
class Judgement:
    """The line of the table that applies.

    Attributes:
        answer: The right answer where a person gave one.
        rejected: An answer that was found worse.
    """

    rule: Rule
    answer: dict[str, Any] | None = None
    rejected: dict[str, Any] | None = None

    @property
    def weight(self) -> float:
        return WEIGHTS[self.rule]


def judge(
    answer: dict[str, Any] | None, opinions: Sequence[Feedback], answers: Container[int] = frozenset()
) -> Judgement:
    """What all that was said makes of an answer (None where the log holds none that could be imitated).

    Args:
        answers: The workload's closed set of answers, by number; empty where it has none.
    """
    objections = praises = 0
    right: Judgement | None = None
    rejected: dict[str, Any] | None = None
    for opinion in sorted(opinions, key=lambda o: (o.at, o.source, o.external_id)):
        if opinion.kind in ("correction", "preference"):
            chosen = opinion.value if opinion.kind == "correction" else opinion.value["chosen"]
            worse = answer if opinion.kind == "correction" else opinion.value["rejected"]
            if answer is not None and same(chosen, answer):
                praises += 1
                rejected = worse if opinion.kind == "preference" else rejected
            else:
                right = Judgement("correction", chosen, worse)
        elif opinion.kind == "label" and isinstance(opinion.value, str) and number_of(opinion.value.strip()) in answers:
            gold = {"role": "assistant", "content": opinion.value.strip()}
            right = Judgement("label", gold, None if answer is not None and same(gold, answer) else answer)
        else:
            sign = opinion_sign(opinion)
            objections += sign < 0
            praises += sign > 0
    if right:
        return right
    if objections:
        return Judgement("objection", rejected=answer)
    return Judgement("praise" if praises else "nothing", rejected=rejected)


def opinion_sign(opinion: Feedback) -> int:
    """1 for praise, -1 for an objection, 0 for neither, of a thumb, a rating or a label."""
    value = opinion.value if isinstance(opinion.value, dict) else {"value": opinion.value}
    if opinion.kind == "thumb":
        return int(value["value"])
    if opinion.kind == "label" or ("metric" in value and "scale" not in value):
        return 0
    worst, best = value.get("scale", (1, 5))
    share = (value["value"] - worst) / (best - worst)
    return -1 if share <= LOW else 1 if share >= HIGH else 0


def of_conversation(opinion: Feedback) -> bool:
    """Whether it is about the whole conversation (TensorZero's "episode")."""
    return isinstance(opinion.value, dict) and opinion.value.get("target") in ("episode", "conversation", "session")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return meaning(one) == meaning(other)


def meaning(message: dict[str, Any]) -> str:
    """An assistant message as canonical JSON: ids of calls, order and spacing of arguments do not matter."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    said = [[function["name"], parsed(function["arguments"])] for function in calls]
    return json.dumps([(message.get("content") or "").strip(), said], sort_keys=True)


def parsed(arguments: str) -> Any:
    """A call's arguments; where they are no JSON, as they were written."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
