"""Train, validation and holdout without leaks: disjoint by conversation and near-duplicate cluster, the holdout latest.

Near duplicates of a holdout item leave train, not the other way round: the holdout stays what the traffic was.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from tasks.cases import Case
from tasks.similarity import root


def split(
    cases: Sequence[Case],
    holdout: float,
    validation: float,
    seed: int,
    held_out: set[int],
    before: tuple[set[int], set[str]],
    left_out: Counter[str],
) -> dict[str, list[Case]]:
    """Train, validation and holdout: disjoint by conversation and cluster, the holdout the latest in time.

    Args:
        cases: In order of time.
        holdout: Share of all of them.
        validation: Share of what is left to train.
        held_out: Interactions that an earlier dataset held out.
        before: Clusters and conversations of those.
    """
    cut = len(cases) - max(1, round(len(cases) * holdout))
    early, late = cases[:cut], cases[cut:]
    begun = {case.conversation for case in early}
    last = [case for case in late if case.conversation not in begun]
    left_out["a conversation that began before the holdout"] += len(late) - len(last)
    near = {case.cluster for case in last} | before[0]
    rest = []
    for case in early:
        if case.id in held_out:
            left_out["held out in an earlier dataset"] += 1
        elif case.cluster in near or case.conversation in before[1]:
            left_out["near a holdout item"] += 1
        else:
            rest.append(case)
    drawn = _sample(rest, round(len(rest) * validation), seed)
    return {
        "train": [case for case in rest if case.id not in drawn],
        "validation": [case for case in rest if case.id in drawn],
        "holdout": last,
    }


def _sample(cases: Sequence[Case], size: int, seed: int) -> set[int]:
    """Ids of at most `size` cases, by whole components of conversations and clusters, drawn by their hashes."""
    parent = list(range(len(cases)))
    seen: dict[str | int, int] = {}
    for i, case in enumerate(cases):
        for mark in (case.conversation, case.cluster):
            parent[root(parent, i)] = root(parent, seen.setdefault(mark, i))
    components: defaultdict[int, list[Case]] = defaultdict(list)
    for i, case in enumerate(cases):
        components[root(parent, i)].append(case)
    drawn: set[int] = set()
    for part in sorted(components.values(), key=lambda part: _lot(part[0], seed)):
        if len(drawn) + len(part) <= size:
            drawn |= {case.id for case in part}
    return drawn


def _lot(case: Case, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{case.key[1]}:{case.key[2]}".encode()).hexdigest()
