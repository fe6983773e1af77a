"""How often a holdout has been used to decide, and when it is used up.

Each time a candidate is held against its references, the answer tells a little of the holdout: students, recipes and
margins are chosen by what passed, and what was chosen often enough passes by luck (C. Dwork et al., "The reusable
holdout", Science 349, 2015). So each candidate's verdict is a look, counted from the verdicts in the database; deciding
again on the same scorecards with the same spec tells nothing new and is none, nor is a verdict for which nothing was
compared. Datasets of one workload share holdout items: a look at one is a look at the part that it shares with another.

A holdout that was looked at as often as its dataset's spec allows decides nothing more. `curate` then leaves out what
was looked at so often, and cuts a fresh holdout from the latest of the rest. What was held out never trains, whether it
is used up or not.
"""

from collections import Counter
from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from infra.database.session import session
from infra.database.tables import DatasetItem, Verdict

BUDGET = 30  # ten turns of three candidates


def looks(dataset_id: str, workload: str) -> float:
    """How often an item of a dataset's holdout was used to decide, on average."""
    held, old = aliased(DatasetItem), aliased(DatasetItem)
    shared = (
        select(old.dataset_id, func.count())
        .join(held, held.interaction_id == old.interaction_id)
        .where(held.dataset_id == dataset_id, held.split == "holdout", old.split == "holdout")
        .group_by(old.dataset_id)
    )
    with session(write=False) as db:
        items: dict[str, int] = {other: n for other, n in db.execute(shared)}
        counts = _looks_at(db, workload)
    return sum(n * items.get(other, 0) for other, n in counts.items()) / max(1, items.get(dataset_id, 0))


def decided(verdict_ids: Collection[str]) -> set[str]:
    """Those of the verdicts that are there already, and were looks."""
    with session(write=False) as db:
        found = db.execute(select(Verdict.id, Verdict.reasons).where(Verdict.id.in_(verdict_ids)))
        return {verdict_id for verdict_id, reasons in found if reasons.get("family", 1)}


def used_up(workload: str, budget: int) -> list[int]:
    """Interactions that were used to decide as often as `budget`."""
    times: Counter[int] = Counter()
    with session(write=False) as db:
        for dataset_id, n in _looks_at(db, workload).items():
            holdout = select(DatasetItem.interaction_id).where(DatasetItem.dataset_id == dataset_id)
            for number in db.scalars(holdout.where(DatasetItem.split == "holdout")):
                times[number] += n
    return [number for number, n in times.items() if n >= budget]


def _looks_at(db: Session, workload: str) -> Counter[str]:
    """Looks by dataset."""
    verdicts = db.execute(select(Verdict.dataset_id, Verdict.reasons).where(Verdict.workload == workload))
    return Counter(dataset_id for dataset_id, reasons in verdicts if reasons.get("family", 1))
