"""How the students learned: the loss of the lesson on the way, and that of imitation on the validation rows by epoch.

The two are different losses and have a panel each. The student that the chosen candidate was made of is in the accent;
others of the turn are grey. A classifier's loss is not a language model's, so only students of the same kind are shown.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from tasks.distill import CURVES
from tasks.report.pen import Box, Picture, Scale
from tasks.report.turn import Turn

LEFT, RIGHT, TOP, FOOT = 44, 46, 14, 40
FLOOR = 1e-6


class Learned(NamedTuple):
    """A student's losses by step, and whether it was chosen."""

    loss: list[tuple[float, float]]
    validation: list[tuple[float, float]]
    chosen: bool


def learned(turn: Turn) -> list[Learned]:
    """Of each student of the chosen one's kind, that last."""
    chosen = turn.chosen.student
    students = {m.student.id: m.student for m in turn.candidates if m.student}
    found = []
    for student in students.values():
        if chosen is None or student.spec.get("name") != chosen.spec.get("name"):
            continue
        file = Path(student.path) / CURVES
        curves = json.loads(file.read_text()) if file.exists() else {"loss": []}
        history = student.report.get("history", [])
        last = max((epoch["epoch"] for epoch in history), default=0) or 1
        steps = student.report.get("steps") or last
        validation = [(epoch.get("step", steps * epoch["epoch"] / last), epoch["validation_loss"]) for epoch in history]
        found.append(Learned([(x, y) for x, y in curves["loss"]], validation, student.id == chosen.id))
    return sorted(found, key=lambda one: one.chosen)


def curve(
    lines: Sequence[tuple[list[tuple[float, float]], bool]], said: str, wide: int, dots: bool, tall: int = 240
) -> Markup:
    """Losses by step, by logarithm; the last value is written at the end of the chosen line."""
    every = [point for line, _ in lines for point in line]
    if not every:
        return Markup("")
    picture = Picture(wide, tall)
    room = Box(LEFT, TOP, wide - RIGHT, tall - FOOT)
    values = [max(y, FLOOR) for _, y in every]
    across = Scale(0, max(x for x, _ in every), room.left, room.right)
    up = Scale(min(values) / 1.15, max(values) * 1.15, room.bottom, room.top, log=True)
    for mark in up.ticks(5):
        picture.line(room.left, up(mark), room.right, up(mark), "rule")
        picture.text(room.left - 6, up(mark) + 4, f"{mark:.3g}", "axis", "end")
    for mark in across.ticks(max(2, int((room.right - room.left) / 80))):
        picture.text(across(mark), room.bottom + 16, f"{mark:,.0f}", "axis", "middle")
    picture.text(room.right, tall - 6, "steps →", "axis", "end")
    for line, chosen in lines:
        kind = "chosen" if chosen else "candidate"
        places = [(across(x), up(max(y, FLOOR))) for x, y in line]
        picture.path(places, f"curve {kind}")
        for (x, y), (_, value) in zip(places, line, strict=True) if dots else ():
            picture.dot(x, y, 3, f"mark {kind}", f"{value:.4g}")
        if chosen and places:
            picture.text(places[-1][0] + 8, places[-1][1] + 4, f"{line[-1][1]:.2g}", "label chosen")
    return picture.svg(f"{said}, from {every[0][1]:.3g} to {every[-1][1]:.3g}")
