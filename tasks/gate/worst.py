"""The worst-slice search: where a candidate loses most against a reference, among slices and pairs of them.

Looked at are all slices of a scorecard and all pairs of them (`calls & request:long`) that have items enough to tell
something, each set of items once. The worst are those whose loss stands out most from what chance does: by the mean
difference of an item over its standard error, by conversation. Whoever looks for the worst finds some; `holm.py` says
how the tests of what was found are corrected for all that was looked at.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from tasks.scoring.scorecards import Item

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AND = " & "


class Found(NamedTuple):
    """The worst slices, worst first, and how many were looked at."""

    names: tuple[str, ...]
    looked: int


def inside(item: Item, name: str) -> bool:
    """Whether an item is in a slice, or in both of a pair."""
    return all(part in item.slices for part in name.split(AND))


def search(ours: Sequence[Item], theirs: Sequence[Item], worst: int, least: int, known: Sequence[str]) -> Found:
    """The worst slices of two scorecards' items, given in the same order.

    Args:
        worst: How many.
        least: Items that a slice must have.
        known: Slices that are tested anyway.
    """
    import numpy as np

    conversations = np.unique([item.conversation for item in ours], return_inverse=True)[1]
    lost = np.array([mine.value - other.value for mine, other in zip(ours, theirs, strict=True)])
    sets = members(ours, least)
    done = {bytes(np.packbits([inside(item, name) for item in ours])) for name in known}
    looked = {name: within for name, within in sets.items() if bytes(np.packbits(within)) not in done}
    marks = {name: _stands_out(lost[within], conversations[within]) for name, within in looked.items()}
    names = sorted(marks, key=lambda name: (marks[name], name))[:worst]
    return Found(tuple(names), len(looked))


def members(items: Sequence[Item], least: int) -> "dict[str, NDArray[np.bool_]]":
    """Which items are in each slice and each pair, but for those that are too small, and the same as another or all."""
    import numpy as np

    names = sorted({name for item in items for name in item.slices})
    single = {name: np.array([name in item.slices for item in items]) for name in names}
    pairs = {f"{a}{AND}{b}": single[a] & single[b] for a, b in combinations(names, 2)}
    found: dict[bytes, str] = {}
    for name, within in (single | pairs).items():
        if least <= within.sum() < len(items):
            found.setdefault(bytes(np.packbits(within)), name)
    return {name: (single | pairs)[name] for name in found.values()}


def _stands_out(lost: "NDArray[np.float64]", conversations: "NDArray[np.int64]") -> float:
    """Mean difference over its standard error; 0 where nothing differs."""
    import numpy as np

    sums = np.bincount(conversations, lost - lost.mean())
    error = float(np.sqrt((sums**2).sum())) / len(lost)
    mean = float(lost.mean())
    return mean / error if error > 0 else np.sign(mean) * np.inf if mean else 0.0
