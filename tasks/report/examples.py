"""Ten requests that student and teacher answered differently, to be read.

First those that the student lost, then those that it won, then those that neither or both had right; among them, those
that a person said something about, and every kind of answer before any comes up again.
"""

import json
from collections.abc import Sequence
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

from sqlalchemy import select

from infra.database.among import among
from infra.database.policy import meaning
from infra.database.session import session
from infra.database.tables import Feedback, Interaction
from infra.prefix import text_of
from tasks.metrics.tool_call import calls
from tasks.report.confusion import label
from tasks.report.holdout import Held
from tasks.report.pen import seen
from tasks.scoring.scorecards import TEACHER, yardstick

TEN, LOST, WON = 10, 6, 3
END, LONGEST = 3, 600  # messages, characters
NO_TEXT = "(no text: an image, a sound or the like)"


class Argument(NamedTuple):
    """One of a call; `differs` where what was expected does."""

    name: str
    value: str
    differs: bool


class Call(NamedTuple):
    """A function with its arguments; None where they could not be read."""

    name: str
    arguments: list[Argument] | None
    differs: bool


class Shown(NamedTuple):
    """A message or an answer to be read; `right` is None where nobody says."""

    who: str
    words: str
    calls: list[Call]
    right: bool | None = None


class Example(NamedTuple):
    """A request and what was answered.

    Attributes:
        earlier: How many messages were before those that are shown.
        opinions: What people said of the logged answer.
    """

    title: str
    earlier: int
    conversation: list[Shown]
    answers: list[Shown]
    opinions: list[str]


def is_different(one: Held) -> bool:
    return meaning(one.student.message) != meaning(one.teacher.message)


def examples(different: Sequence[Held]) -> list[Example]:
    """At most ten of them."""
    opinions = opinions_of([one.number for one in different])
    chosen = chosen_of(different, opinions)
    return [example(one, opinions.get(one.number, [])) for one in chosen]


def chosen_of(items: Sequence[Held], opinions: dict[int, list[str]]) -> list[Held]:
    kinds: dict[str, list[Held]] = {"lost": [], "won": [], "other": []}
    for one in items:
        kinds[kind_of(one)].append(one)
    found = {kind: _varied(some, opinions) for kind, some in kinds.items()}
    first = [*found["lost"][:LOST], *found["won"][:WON], *found["other"]][:TEN]
    more = [one for kind in ("lost", "won", "other") for one in found[kind] if one not in first]
    order = list(kinds)
    return sorted([*first, *more][:TEN], key=lambda one: order.index(kind_of(one)))


def kind_of(one: Held) -> str:
    """lost, won or other: by the metric, for the student."""
    student, teacher = one.student.value or 0.0, one.teacher.value or 0.0
    return "lost" if student < teacher else "won" if student > teacher else "other"


def _varied(items: Sequence[Held], opinions: dict[int, list[str]]) -> list[Held]:
    """One of each expected label, then a second of each; those that people spoke of first."""
    ordered = sorted(items, key=lambda one: (label(one.row["expected"]), one.number not in opinions, one.number))
    groups = [list(some) for _, some in groupby(ordered, key=lambda one: label(one.row["expected"]))]
    groups.sort(key=lambda some: (some[0].number not in opinions, -len(some), some[0].number))
    return [one for layer in zip_longest(*groups) for one in layer if one is not None]


def opinions_of(numbers: Sequence[int]) -> dict[int, list[str]]:
    """What was said of each interaction, in words, in order of time."""
    found: dict[int, list[str]] = {}
    with session(write=False) as db:
        query = (
            select(Interaction.id, Feedback.kind, Feedback.value)
            .join(Feedback, Feedback.record_id == Interaction.external_id)
            .where(among(db, Interaction.id, numbers))
            .order_by(Feedback.at, Feedback.id)
        )
        for number, kind, value in db.execute(query) if numbers else ():
            found.setdefault(number, []).append(in_words(kind, value))
    return found


def in_words(kind: str, value: Any) -> str:
    """An opinion as a person would tell it; what a correction says is what was expected, and shown as that."""
    bare = value.get("value", value) if isinstance(value, dict) else value
    if kind == "thumb":
        return "thumb up" if bare == 1 else "thumb down"
    if kind in ("rating", "label"):
        return f"{'rated' if kind == 'rating' else 'labelled'} {_clipped(str(bare))}"
    return "corrected" if kind == "correction" else kind


def example(one: Held, opinions: list[str]) -> Example:
    """As it is shown; the teacher's answer is not repeated where it is what was expected."""
    row, due = one.row, one.row["expected"]
    messages = [m for m in row["messages"] if m.get("role") != "system"]
    held = yardstick(row)
    student = shown("Student", one.student.message, due, _right(one.student.value))
    teacher = shown("Teacher", one.teacher.message, due, _right(one.teacher.value))
    by = f", by {held}" if held != TEACHER else ""
    if meaning(due) == meaning(one.teacher.message):
        answers = [student, teacher._replace(who=f"Teacher, as expected{by}")]
    else:
        answers = [student, teacher, shown(f"Expected{by or ', as the teacher was logged'}", due)]
    title = {"lost": "Lost", "won": "Won", "other": "Different"}[kind_of(one)]
    return Example(
        title, max(0, len(messages) - END), [shown(m["role"], m) for m in messages[-END:]], answers, opinions
    )


def _right(value: float | None) -> bool | None:
    return None if value is None else value >= 1


def shown(who: str, message: dict[str, Any], due: dict[str, Any] | None = None, right: bool | None = None) -> Shown:
    wanted: dict[str, dict[str, Any]] = {name: said or {} for name, said in calls(due)} if due else {}
    made = []
    for name, arguments in calls(message):
        of, told = wanted.get(name, {}), due is not None
        listed = None
        if arguments is not None:
            listed = [
                Argument(key, _value(v), told and name in wanted and of.get(key) != v) for key, v in arguments.items()
            ]
        made.append(Call(name, listed, told and name not in wanted))
    content = message.get("content")
    said = text_of(content)
    return Shown(who, _clipped(said or "") if said is not None or not content else NO_TEXT, made, right)


def _value(value: Any) -> str:
    return _clipped(json.dumps(value, ensure_ascii=False))


def _clipped(text: str) -> str:
    """As it was said, its lines kept; the end of what is long says most."""
    text = seen(text.strip())
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
