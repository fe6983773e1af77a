"""The holdout's rows, and what the student and what it is read beside answered to each."""

from dataclasses import dataclass
from typing import Any

from infra.settings import SetupError
from tasks.dataset.frozen import load
from tasks.report.turn import Model, Said, Turn, answers_of


@dataclass(frozen=True)
class Held:
    """An item of the holdout.

    Attributes:
        row: As frozen, without the baked prefix.
        slices: Of the chosen candidate's scorecard.
    """

    row: dict[str, Any]
    student: Said
    teacher: Said
    slices: tuple[str, ...]

    @property
    def number(self) -> int:
        return int(self.row["interaction_id"])


@dataclass(frozen=True)
class Holdout:
    """The items that are still on file, and why there are none."""

    items: tuple[Held, ...] = ()
    missing: str = ""


def holdout_of(turn: Turn) -> Holdout:
    """What can be read of it; files may have been erased, lost or changed."""
    try:
        rows = load(turn.dataset.id).split("holdout")
    except SetupError as problem:
        return Holdout(missing=f"The holdout cannot be read: {problem}.")
    answers = {name: answers_of(model) for name, model in (("student", turn.chosen), ("teacher", turn.teacher))}
    for name, found in answers.items():
        if not found:
            return Holdout(missing=f"The {name}’s answers are no longer on file.")
    slices = {item.interaction_id: item.slices for item in turn.chosen.card.items}
    student, teacher = answers["student"], answers["teacher"]
    return Holdout(
        tuple(
            Held(row, student[number], teacher[number], slices.get(number, ()))
            for row in rows
            if (number := row["interaction_id"]) in student and number in teacher
        )
    )


def beside(model: Model) -> str:
    return "teacher" if model.role == "teacher" else model.name
