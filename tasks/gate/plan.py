"""How large the holdout of a dataset should be for a gate to tell, before anything is trained or asked."""

from collections.abc import Callable
from typing import Any

from tasks.evaluate import EvaluateSpec
from tasks.gate.rule import GateSpec

Progress = Callable[[int, int, str], None]


def plan(
    dataset_id: str,
    gate: GateSpec,
    evaluate: EvaluateSpec,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Hold the size of a dataset's holdout against what a gate asks for.

    A search for the worst slices is planned as if it tested the smallest slices that it looks at.

    Returns:
        dataset_id, holdout (items), recommended (items, such that an equal student passes with a chance of
        `gate.power`; None where a declared slice has no item), tests.

    Raises:
        SetupError: There is no such dataset, or it has no holdout.
    """
    from infra import registry
    from tasks.curate import load
    from tasks.gate.power import recommended
    from tasks.gate.proportions import effective
    from tasks.gate.worst import inside, members
    from tasks.scoring.asked import holdout
    from tasks.scoring.scorecards import Item, slices_of

    dataset = load(dataset_id)
    rows = holdout(dataset)
    items = [
        Item(row["interaction_id"], row["conversation"], slices, 0.0)
        for row, slices in zip(rows, slices_of(rows), strict=True)
    ]
    references = 2 if registry.champion_number(dataset.workload) else 1
    sizes = [sum(inside(item, name) for item in items) for name in gate.slices]
    sets = sorted(int(within.sum()) for within in members(items, gate.worst_items).values()) if gate.worst else []
    tests = [(gate.margin, 1.0)]
    tests += [(gate.slice_margin, size / len(items)) for size in [*sizes, *sets[: gate.worst]]]
    told: dict[str, Any] = {"dataset_id": dataset_id, "holdout": len(items), "recommended": None}
    family = references * (1 + len(sizes) + len(sets))
    if all(share for _, share in tests):
        independent = effective(item.conversation for item in items) / len(items)
        told["recommended"] = recommended(
            tests * references,
            gate.spread,
            1 - gate.confidence,
            gate.power,
            family,
            evaluate.metric.binary,
            independent,
        )
    return {**told, "tests": family}


def enough(planned: dict[str, Any]) -> bool:
    """Whether the holdout has what the gate asks for."""
    return planned["recommended"] is not None and planned["recommended"] <= planned["holdout"]


def said(planned: dict[str, Any]) -> str:
    """The plan in one line."""
    if planned["recommended"] is None:
        return f"the holdout of {planned['holdout']:,} has no item of a slice of gate.slices: the gate cannot promote"
    more = "" if enough(planned) else "; an equal student may come out inconclusive"
    return (
        f"the gate asks for a holdout of about {planned['recommended']:,} items, there are {planned['holdout']:,}{more}"
    )
