"""The bill: what 1,000 requests cost the teacher, what served, and the student, as measured on their scorecards.

USD where there are prices; machine time where the model ran on this machine. What a classifier leaves to the teacher is
in its cost.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from tasks.report import numbers
from tasks.report.pen import Picture, width_of
from tasks.report.story import short
from tasks.report.turn import Model, Turn


class Line(NamedTuple):
    """What 1,000 requests take of a model: USD, and what else is known, as text by what it is."""

    name: str
    chosen: bool
    relative: float | None
    usd: float | None
    known: dict[str, str]


class Table(NamedTuple):
    """The lines with the columns that are known of any."""

    heads: list[str]
    lines: list["Row"]


class Row(NamedTuple):
    """A line of the table."""

    name: str
    chosen: bool
    values: list[str]


def bill(turn: Turn) -> list[Line]:
    """The teacher first, the chosen one last."""
    shown = [turn.teacher, *([turn.champion] if turn.champion else []), turn.chosen]
    return [_line(model, model is turn.chosen) for model in shown]


def table(lines: Sequence[Line]) -> Table:
    heads = [head for head in lines[0].known if any(line.known[head] != numbers.NONE for line in lines)]
    return Table(heads, [Row(line.name, line.chosen, [line.known[head] for head in heads]) for line in lines])


def _line(model: Model, chosen: bool) -> Line:
    metrics, n = model.metrics, model.metrics.get("n") or 0
    usd, joules = metrics.get("usd_per_1000"), metrics.get("joules_per_request")
    read, written = (
        None if metrics.get(key) is None or not n else 1000 * metrics[key] / n
        for key in ("prompt_tokens", "completion_tokens")
    )
    known = {
        "USD": numbers.dollars(usd),
        "machine time": numbers.seconds(None if model.card.seconds is None else 1000 * model.card.seconds),
        "energy": numbers.NONE if joules is None else f"{joules:.3g} kJ",
        "prompt tokens read": numbers.count(read),
        "tokens written": numbers.count(written),
        "left to the teacher": numbers.percent(metrics.get("abstained") or None),
        "cost, teacher 1": numbers.times(model.card.cost),
    }
    return Line(short(model), chosen, model.card.cost, usd, known)


def saved(turn: Turn) -> str:
    """What the student saves of a bill of 1,000 requests, in a sentence; empty where it is not known."""
    lines = bill(turn)
    teacher, mine = lines[0], lines[-1]
    if mine.usd is not None and teacher.usd:
        return (
            f"1,000 requests cost {numbers.dollars(mine.usd)} in place of {numbers.dollars(teacher.usd)}: "
            f"{_less(mine.usd / teacher.usd)}."
        )
    if mine.relative is None:
        return ""
    return f"1,000 requests take {_less(mine.relative)} machine time than with the teacher."


def _less(ratio: float) -> str:
    return f"{100 * (1 - ratio):.0f} % less" if ratio <= 1 else f"{100 * (ratio - 1):.0f} % more"


def bars(lines: list[Line], wide: int) -> Markup:
    """A bar a model: USD if all have a price, else the time of the machine; nothing where neither is known."""
    priced = all(line.usd is not None for line in lines)
    known = [(line, line.usd if priced else line.relative) for line in lines]
    values = [value for _, value in known if value is not None]
    if len(values) < 2 or not max(values):
        return Markup("")
    step, left = 34, min(150.0, 0.38 * wide)
    picture = Picture(wide, step * len(known) + 4)
    room = wide - left - 84
    for n, (line, value) in enumerate(known):
        y, kind = n * step + 4, "chosen" if line.chosen else "candidate"
        name = line.name if width_of(line.name) < left - 8 else line.name[: int(left / 7) - 2] + "…"
        picture.text(0, y + 18, name, f"label {kind if line.chosen else ''}")
        if value is None:
            picture.text(left, y + 18, "not known", "axis")
            continue
        long = max(2.0, room * value / max(values))
        picture.box(left, y + 4, long, 20, f"bar {kind if line.chosen else ''}")
        said = numbers.dollars(value) if priced else numbers.times(value)
        picture.text(left + long + 8, y + 18, said, f"label {kind if line.chosen else ''}")
    what = "USD for 1,000 requests" if priced else "machine time over the teacher's"
    told = ", ".join(f"{line.name} {numbers.dollars(v) if priced else numbers.times(v)}" for line, v in known)
    return picture.svg(f"{what}: {told}")
