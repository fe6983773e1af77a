"""Quality against what it costs to have it: bytes, or milliseconds.

Each model is a dot with the 95 % interval of its quality. The chosen one is filled with the accent, candidates with
grey, what they were held against is hollow. A step marks the best quality at no more than so much. A teacher of which
the cost is not known is a line across.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from tasks.report import numbers
from tasks.report.pen import Box, Picture, Scale, clipped, free_place, width_of
from tasks.report.story import short
from tasks.report.turn import Turn

LEFT, RIGHT, TOP, FOOT = 44, 10, 14, 40
LABELS = 8
LETTERS = 30


class Point(NamedTuple):
    """A model in the plot; `x` is None where it is not known."""

    name: str
    kind: str
    x: float | None
    y: float
    low: float | None
    high: float | None


def points_of(turn: Turn, key: str) -> list[Point]:
    """The models whose quality is known, what is not chosen first."""
    found = []
    for model in turn.models:
        quality = model.metrics.get("quality")
        if quality is None:
            continue
        kind = "chosen" if model is turn.chosen else model.role
        ends = model.metrics.get("low"), model.metrics.get("high")
        found.append(Point(short(model), kind, model.metrics.get(key) or None, quality, *ends))
    return sorted(found, key=lambda point: point.kind == "chosen")


def pareto(points: Sequence[Point], unit: str, shown: Callable[[float], str], wide: int, tall: int = 300) -> Markup:
    """The plot; `unit` names the other axis, `shown` writes its values."""
    known = [point.x for point in points if point.x is not None]
    if not known:
        return Markup("")
    picture = Picture(wide, tall)
    room = Box(LEFT, TOP, wide - RIGHT, tall - FOOT)
    across = Scale(min(known) / 1.3, max(known) * 1.3, room.left, room.right, log=True)
    ends = [value for p in points for value in (p.low, p.high, p.y) if value is not None]
    pad = max(0.005, 0.08 * (max(ends) - min(ends)))
    up = Scale(max(0.0, min(ends) - pad), min(1.0, max(ends) + pad), room.bottom, room.top)
    _axes(picture, room, across, up, unit, shown)
    _front(picture, points, across, up, room)
    taken = _marks(picture, points, across, up, room)
    _labels(picture, points, across, up, room, taken)
    said = "; ".join(_told(point, shown) for point in points)
    return picture.svg(f"Quality against {unit}. {said}.")


def _told(point: Point, shown: Callable[[float], str]) -> str:
    cost = "at an unknown cost" if point.x is None else f"at {shown(point.x)}"
    interval = "" if point.low is None else f" ({numbers.percent(point.low)} to {numbers.percent(point.high)})"
    return f"{point.name}: {numbers.percent(point.y)}{interval} {cost}"


def _axes(picture: Picture, room: Box, across: Scale, up: Scale, unit: str, shown: Callable[[float], str]) -> None:
    marks = up.ticks(5)
    whole = all(abs(100 * mark - round(100 * mark)) < 1e-6 for mark in marks)
    for mark in marks:
        picture.line(room.left, up(mark), room.right, up(mark), "rule")
        picture.text(room.left - 6, up(mark) + 4, numbers.percent(mark, 0 if whole else 1), "axis", "end")
    most = max(2, int((room.right - room.left) / 70))
    for mark in across.ticks(most):
        x = across(mark)
        picture.line(x, room.bottom, x, room.bottom + 4, "rule")
        picture.text(min(max(x, room.left + 8), room.right - 12), room.bottom + 16, shown(mark), "axis", "middle")
    picture.text(room.right, picture.tall - 6, f"{unit} →", "axis", "end")


def _front(picture: Picture, points: Sequence[Point], across: Scale, up: Scale, room: Box) -> None:
    """The best quality at no more than so much."""
    best = -1.0
    steps: list[tuple[float, float]] = []
    for point in sorted((p for p in points if p.x is not None), key=lambda p: (p.x or 0.0, -p.y)):
        if point.y > best:
            x = across(point.x or 0.0)
            if steps:
                steps.append((x, steps[-1][1]))
            steps.append((x, up(point.y)))
            best = point.y
    if steps:
        picture.path([*steps, (room.right, steps[-1][1])], "front")


def _marks(picture: Picture, points: Sequence[Point], across: Scale, up: Scale, room: Box) -> list[Box]:
    """Dots and intervals; where they are."""
    taken: list[Box] = []
    for p in points:
        said = _told(p, str) if p.x is None else f"{p.name}: {numbers.percent(p.y)}"
        if p.x is None:
            picture.line(room.left, up(p.y), room.right, up(p.y), f"dash {p.kind}")
            continue
        x = across(p.x)
        if p.low is not None and p.high is not None:
            picture.line(x, up(p.low), x, up(p.high), f"whisker {p.kind}")
            taken.append(Box(x - 4, up(p.high), x + 4, up(p.low)))
        picture.dot(x, up(p.y), 5.5 if p.kind == "chosen" else 4.5, f"mark {p.kind}", said)
        taken.append(Box(x - 6, up(p.y) - 6, x + 6, up(p.y) + 6))
    return taken


def _labels(picture: Picture, points: Sequence[Point], across: Scale, up: Scale, room: Box, taken: list[Box]) -> None:
    """Names beside their dots: the chosen one's first, then what it was held against, then the others while few."""
    order = {"chosen": 0, "teacher": 1, "champion": 1, "candidate": 2}
    for point in sorted(points, key=lambda p: order[p.kind])[:LABELS]:
        name = clipped(point.name, LETTERS)
        if point.x is None:
            picture.text(room.right, up(point.y) - 5, name, f"label halo {point.kind}", "end")
            taken.append(Box(room.right - width_of(name), up(point.y) - 17, room.right, up(point.y)))
            continue
        at = across(point.x), up(point.y)
        box = free_place(at, width_of(name), 15, taken, room)
        taken.append(box)
        near = min(max(at[0], box.left), box.right), min(max(at[1], box.top), box.bottom)
        if abs(near[0] - at[0]) + abs(near[1] - at[1]) > 16:
            picture.line(*at, *near, "leader")
        picture.text((box.left + box.right) / 2, box.bottom - 3, name, f"label halo {point.kind}", "middle")
