"""What every picture is drawn with: SVG elements, scales, ticks, and labels that keep out of each other's way.

A picture is drawn for a width in pixels and is shown at that width, so that its letters are as large as those around
it; the page has one for wide and one for narrow screens. Colours and fonts come from the style sheet, by class. All
text is escaped here, and nowhere else does text become SVG.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

LETTER = 0.55  # mean width of a letter, in sizes of the font
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that two share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, tall)


class Scale(NamedTuple):
    """Values to places: `low` is at `start`, `high` at `end`; by logarithm where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high != low else 0.5)

    def ticks(self, most: int = 5) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else ticks(self.low, self.high, most)


class Picture:
    """An SVG that grows: elements are added in the order in which they lie on each other."""

    def __init__(self, wide: float, tall: float) -> None:
        self.wide, self.tall = wide, tall
        self.parts: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "rule") -> None:
        self._add(Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>'), x1, y1, x2, y2, kind)

    def box(self, x: float, y: float, wide: float, tall: float, kind: str, said: str = "") -> None:
        made = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}">{}</rect>')
        self._add(made, x, y, max(0.0, wide), max(0.0, tall), kind, _title(said))

    def dot(self, x: float, y: float, radius: float, kind: str, said: str = "") -> None:
        made = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}">{}</circle>')
        self._add(made, x, y, radius, kind, _title(said))

    def path(self, points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> None:
        if len(points) < 2:
            return
        drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
        self._add(Markup('<path d="{}" class="{}"/>'), drawn, kind)

    def text(self, x: float, y: float, said: str, kind: str = "label", anchor: str = "start") -> None:
        self._add(
            Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>'), x, y, kind, anchor, seen(said)
        )

    def _add(self, made: Markup, *values: object) -> None:
        self.parts.append(made.format(*values))

    def svg(self, said: str) -> Markup:
        """The whole; `said` is what a screen reader says."""
        head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">')
        whole = head.format(self.wide, self.tall, seen(said))
        return whole + Markup("").join(self.parts) + Markup("</svg>")


def _title(said: str) -> Markup:
    return Markup("<title>{}</title>").format(seen(said)) if said else Markup("")


def seen(text: str) -> str:
    """Text without what no document may hold: control characters and halves of pairs."""
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def clipped(text: str, most: int) -> str:
    """The beginning, on one line, with an ellipsis where there was more."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: max(1, most - 1)].rstrip() + "…"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most so many."""
    if high <= low:
        return [low]
    for power in range(math.floor(math.log10((high - low) / most)) - 1, 400):
        for step in (1, 2, 5):
            size = step * 10.0**power
            first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
            if last - first < most:
                return [round(n * size, 12) for n in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round multiples of powers of ten from low to high, as dense as `most` allows."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in exponents for step in steps]
        inside = [value for value in found if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]
        if 2 <= len(inside) <= most:
            return inside
    return ticks(low, high, most) if len(inside) < 2 else inside[:: math.ceil(len(inside) / most)]


def width_of(text: str, size: float = 13) -> float:
    """About how wide a text will be, in pixels."""
    return LETTER * size * len(text)


def free_place(at: tuple[float, float], wide: float, tall: float, taken: Sequence[Box], room: Box) -> Box:
    """Where a label of this size goes that belongs to a point: near it, in the room, on as little else as can be."""
    x, y = at
    best, worst = Box(x, y, x + wide, y + tall), math.inf
    for far in (8.0, 14.0, 24.0, 36.0, 50.0):
        for dx, dy in ((1, 0), (-1, 0), (0.4, -1), (0.4, 1), (-0.4, -1), (-0.4, 1), (0, -1), (0, 1)):
            left = x + far * dx if dx > 0 else x + far * dx - wide if dx < 0 else x - wide / 2
            top = y - tall / 2 + dy * (far + tall / 2 - 4)
            box = Box(left, top, left + wide, top + tall)
            outside = wide * tall - box.overlap(room)
            cost = sum(box.overlap(other) for other in taken) + 3 * outside + far
            if cost < worst:
                best, worst = box, cost
    return best
