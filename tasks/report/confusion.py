"""What the student says where it loses most: what was expected against what it answered, on the worst slice.

A label is the functions that are called, or the words. The same functions with other arguments are no right answer and
have a column of their own, so that the diagonal holds what is right.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.metrics.exact_match import words
from tasks.metrics.tool_call import calls
from tasks.report.holdout import Held
from tasks.report.pen import clipped
from tasks.report.slices import Difference, readable

MOST = 7
FEWEST = 20  # items of a slice that has something to tell
OTHER, ARGUMENTS = "anything else", "other arguments"


class Cell(NamedTuple):
    """How many, and how much of its row, in fifths."""

    items: int
    heat: int
    right: bool


class Confusion(NamedTuple):
    """A table of counts; `said` names the slice and how it did."""

    slice: str
    items: int
    right: int
    lost: float
    columns: list[str]
    rows: list[tuple[str, int, list[Cell]]]


def worst_of(found: Sequence[Difference]) -> Difference | None:
    """The slice that loses most, of those with items enough; of those that lose nothing, the first."""
    some = [one for one in found[1:] if one.items >= FEWEST] or list(found[1:]) or list(found)
    return min(some, key=lambda one: (one.value, one.low, one.name)) if some else None


def label(message: dict[str, Any]) -> str:
    if names := sorted(name for name, _ in calls(message)):
        return " + ".join(names)
    return words(message) or "nothing"


def confusion(items: Sequence[Held], worst: Difference) -> Confusion | None:
    """Expected against answered on a slice; rare labels are taken together, and none of them is quoted."""
    some = [one for one in items if not worst.name or all(part in one.slices for part in worst.name.split(" & "))]
    if not some:
        return None
    counts: Counter[tuple[str, str, bool]] = Counter()
    for one in some:
        due, given, right = label(one.row["expected"]), label(one.student.message), (one.student.value or 0.0) >= 1
        counts[due, given if right or due != given else ARGUMENTS, right] += 1
    rows = _common(counts, 0)
    columns = _common(counts, 1, rows)
    shown: dict[str, Counter[tuple[str, bool]]] = {row: Counter() for row in [*rows, OTHER]}
    for (due, given, right), n in counts.items():
        row = due if due in rows else OTHER
        column = given if given == ARGUMENTS or given in columns else OTHER
        if row == OTHER and right:
            column = OTHER
        shown[row][column, right] += n
    heads = [*columns, *([OTHER] if any((OTHER, r) in c for c in shown.values() for r in (True, False)) else [])]
    heads += [ARGUMENTS] if any((ARGUMENTS, False) in c for c in shown.values()) else []
    table = []
    for row, cells in shown.items():
        if whole := cells.total():
            table.append((clipped(row, 40), whole, [_cell(cells, head, whole) for head in heads]))
    answered = sum((one.student.value or 0.0) >= 1 for one in some)
    return Confusion(readable(worst.name), len(some), answered, worst.value, [clipped(h, 40) for h in heads], table)


def _common(counts: Counter[tuple[str, str, bool]], side: int, before: Sequence[str] = ()) -> list[str]:
    """The commonest labels of one side that come up twice at least, those in `before` first and in its order."""
    found: Counter[str] = Counter()
    for (due, given, _), n in counts.items():
        found[(due, given)[side]] += n
    often = [
        name for name, n in sorted(found.items(), key=lambda one: (-one[1], one[0])) if n > 1 and name != ARGUMENTS
    ]
    first = [name for name in before if name in often]
    return [*first, *(name for name in often if name not in first)][:MOST]


def _cell(cells: Counter[tuple[str, bool]], head: str, whole: int) -> Cell:
    right, wrong = cells[head, True], cells[head, False]
    n = right + wrong
    return Cell(n, -(-5 * n // whole) if n else 0, right > 0 and wrong == 0)
