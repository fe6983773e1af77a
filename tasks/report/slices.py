"""What the chosen candidate gains and loses, slice by slice, against what served: differences, intervals, the margin.

The interval of a slice has the gate's confidence on either side and is for that slice by itself. What the gate tested
has a filled dot and the gate's own bounds, which are wider: they are corrected for the number of tests.
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from tasks.gate.rule import compared, metric_of
from tasks.gate.worst import AND, inside
from tasks.report import numbers
from tasks.report.pen import Box, Picture, Scale, clipped
from tasks.report.turn import Turn
from tasks.scoring.scorecards import Item

MOST, LEAST, ENOUGH = 14, 5, 20
RESAMPLES = 999
WHOLE = "all requests"
READABLE = {
    "calls": "calls are due", "words": "words are due", "turn:first": "first turn", "turn:later": "later turn",
    "request:short": "short requests", "request:medium": "medium requests", "request:long": "long requests",
}  # fmt: skip


class Difference(NamedTuple):
    """Chosen minus reference on a slice (the whole has no name); `tested` where the gate did."""

    name: str
    items: int
    value: float
    low: float
    high: float
    margin: float
    tested: bool


def differences(turn: Turn) -> list[Difference]:
    """The whole first, then slices by what is lost, as far as both scorecards have the same items."""
    pairs = _pairs(turn)
    metric = metric_of(turn.chosen.card)
    if not pairs or metric is None:
        return []
    tested = {
        f["slice"]: f
        for f in turn.verdict.reasons.get("findings") or []
        if f.get("reference") == turn.reference.card.subject and f.get("difference") is not None
    }
    names = sorted({name for mine, _ in pairs for name in mine.slices} | {name for name in tested if name})
    least = max(LEAST, min(ENOUGH, len(pairs) // 10))
    found = []
    for name in ("", *names):
        some = [pair for pair in pairs if not name or inside(pair[0], name)]
        margin = float(turn.spec["slice_margin" if name else "margin"])
        if gate := tested.get(name):
            found.append(Difference(name, len(some), gate["difference"], gate["low"], gate["high"], margin, True))
        elif len(some) >= least and (not name or len(some) < len(pairs)):
            mine, theirs = map(list, zip(*some, strict=True))
            data = compared(metric, mine, theirs, RESAMPLES)
            low, high = data.bounds(float(turn.spec["confidence"]))
            found.append(Difference(name, len(some), data.difference, low, high, margin, False))
    return [found[0], *sorted(found[1:], key=lambda d: (not d.tested, d.value, d.name))[:MOST]] if found else []


def _pairs(turn: Turn) -> list[tuple[Item, Item]]:
    theirs = {item.interaction_id: item for item in turn.reference.card.items}
    mine = turn.chosen.card.ordered
    return [(item, theirs[item.interaction_id]) for item in mine if item.interaction_id in theirs]


def readable(name: str) -> str:
    """A slice's name in words."""
    return AND.join(_readable(part) for part in name.split(AND)) if name else WHOLE


def _readable(name: str) -> str:
    kind, _, rest = name.partition(":")
    if kind in ("answer", "yardstick"):
        return f"“{rest}”" if kind == "answer" else f"held against a {rest}".replace("a teacher's", "the teacher’s")
    return READABLE.get(name, rest or name)


def intervals(found: Sequence[Difference], turn: Turn, wide: int) -> Markup:
    """A row a slice: its name, its interval, and how many items it has; the margins are lines down."""
    narrow = wide < 500
    step, top = (40 if narrow else 26), 34
    left, right = (8, wide - 8) if narrow else (250, wide - 70)
    tall = top + step * len(found) + 34
    picture = Picture(wide, tall)
    room = Box(left, top, right, tall - 34)
    ends = [v for d in found for v in (d.low, d.high, -d.margin, 0.0)]
    pad = 0.05 * (max(ends) - min(ends))
    across = Scale(min(ends) - pad, max(ends) + pad, room.left, room.right)
    for mark in across.ticks(5 if narrow else 8):
        zero = abs(mark) < 1e-9
        picture.line(across(mark), room.top, across(mark), room.bottom, "zero" if zero else "rule")
        said = "0" if zero else numbers.points(mark).removesuffix(".0")
        picture.text(across(mark), room.bottom + 16, said, "axis", "middle")
    picture.text(room.right, tall - 2, "points, student − reference", "axis", "end")
    _margins(picture, found, across, top, step)
    for n, one in enumerate(found):
        _row(picture, one, across, top + n * step, wide, narrow)
    said = "; ".join(f"{readable(d.name)} {numbers.points(d.value)}" for d in found)
    return picture.svg(f"Differences in points against {turn.reference.name}: {said}.")


def _margins(picture: Picture, found: Sequence[Difference], across: Scale, top: float, step: float) -> None:
    """The margin of the whole beside its row, that of slices beside theirs."""
    whole, rest = found[0], found[1:]
    x = across(-whole.margin)
    picture.line(x, top, x, top + step, "margin")
    picture.text(x, top - 7, f"margin {numbers.points(-whole.margin)}", "label accent", "middle")
    if rest:
        x = across(-rest[0].margin)
        if rest[0].margin == whole.margin:
            picture.line(x, top + step, x, top + step * len(found), "margin")
            return
        picture.line(x, top + step, x, top + step * len(found), "margin")
        room = abs(x - across(-whole.margin)) > 130
        y = top - 7 if room else top - 21
        picture.text(max(x, 50), y, f"of a slice {numbers.points(-rest[0].margin)}", "label accent", "middle")


def _row(picture: Picture, one: Difference, across: Scale, y: float, wide: int, narrow: bool) -> None:
    middle = y + (29 if narrow else 13)
    name, weight = readable(one.name), "label halo strong" if not one.name else "label halo"
    number = f"{one.items:,}" if one.name else f"n = {one.items:,}"
    picture.text(0, y + 14 if narrow else middle + 4, clipped(name, 38 if narrow else 34), weight)
    picture.text(wide, y + 14 if narrow else middle + 4, number, "axis", "end")
    kind = "lost" if one.high < -one.margin else "worse" if one.low < -one.margin else "kept"
    said = f"{name}: {numbers.points(one.value)}, from {numbers.points(one.low)} to {numbers.points(one.high)}"
    picture.line(across(one.low), middle, across(one.high), middle, f"interval {kind}")
    picture.dot(across(one.value), middle, 4.5 if one.tested else 3.5, f"estimate {kind}{' tested' * one.tested}", said)
