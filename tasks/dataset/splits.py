"""Train, validation and holdout without leaks: disjoint by conversation and near-duplicate cluster, the holdout latest.

Near duplicates of a holdout item leave train, not the other way round: the holdout stays what the traffic was. Disliked
answers, from which preferences are learned, are kept from the train period alone, and as far from validation and
holdout as train is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Entries:
    """What the split goes by, in order of time; each (n,).

    Attributes:
        places: In the order of time of all traffic.
        ids: Of the interactions.
        conversations: A number for each conversation.
        clusters: A number for each near-duplicate cluster.
        lots: Random numbers.
    """

    places: NDArray[np.int64]
    ids: NDArray[np.int64]
    conversations: NDArray[np.uint64]
    clusters: NDArray[np.int64]
    lots: NDArray[np.uint64]

    def take(self, which: Any) -> "Entries":
        """Those of a slice, a mask or of numbers."""
        columns = (self.places, self.ids, self.conversations, self.clusters, self.lots)
        return Entries(*(column[which] for column in columns))


def split(
    usable: Entries,
    disliked: Entries,
    holdout: float,
    validation: float,
    held_out: Entries,
    left_out: Counter[str],
) -> dict[str, NDArray[np.int64]]:
    """Train, validation, holdout and disliked, as ids of interactions: disjoint by conversation and cluster.

    Disliked may share both with train, as another answer to the same request does.

    Args:
        usable: In order of time.
        disliked: Those whose answer was objected to, in order of time.
        holdout: Share of all of them, the latest.
        validation: Share of what is left to train.
        held_out: What an earlier dataset held out.
        left_out: Takes in how many were left out, by reason.
    """
    n = len(usable.ids)
    cut = n - max(1, round(n * holdout))
    early, late = usable.take(slice(cut)), usable.take(slice(cut, None))
    begun = np.isin(late.conversations, early.conversations)
    left_out["a conversation that began before the holdout"] += int(begun.sum())
    last = late.take(~begun)
    held = np.isin(early.ids, held_out.ids)
    near = _touch(early, [last, held_out])
    left_out["held out in an earlier dataset"] += int(held.sum())
    left_out["near a holdout item"] += int((near & ~held).sum())
    rest = early.take(~(near | held))
    drawn = _sample(rest, round(len(rest.ids) * validation))
    measured = [rest.take(drawn), last, held_out]
    return {
        "train": rest.ids[~drawn],
        "validation": rest.ids[drawn],
        "holdout": last.ids,
        "disliked": disliked.ids[~_touch(disliked, measured) & (disliked.places < usable.places[cut])],
    }


def _touch(some: Entries, others: Sequence[Entries]) -> NDArray[np.bool_]:
    """Which of some entries share interaction, conversation or cluster with any of the others."""
    touch = np.zeros(len(some.ids), bool)
    for other in others:
        for mark in ("ids", "conversations", "clusters"):
            touch |= np.isin(getattr(some, mark), getattr(other, mark))
    return touch


def _sample(rest: Entries, size: int) -> NDArray[np.bool_]:
    """Which entries to draw: at most `size`, by whole components of conversations and clusters, in order of lots."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(rest.ids)
    if not n:
        return np.zeros(0, bool)
    conversations, clusters = (
        np.unique(marks, return_inverse=True)[1] for marks in (rest.conversations, rest.clusters)
    )  # fmt: skip
    nodes = int(conversations.max()) + 1
    size_of_graph = nodes + int(clusters.max()) + 1
    graph = coo_array((np.ones(n, bool), (conversations, nodes + clusters)), (size_of_graph, size_of_graph))
    component = connected_components(graph, directed=False)[1][conversations]
    _, firsts, component = np.unique(component, return_index=True, return_inverse=True)
    sizes = np.bincount(component)
    chosen = np.zeros(len(firsts), bool)
    drawn = 0
    for part in np.argsort(rest.lots[firsts], kind="stable"):
        if drawn + sizes[part] <= size:
            chosen[part] = True
            drawn += sizes[part]
    return chosen[component]
