"""Retention: what is older than a date is deleted, but for what datasets were made of.

Deleted are interactions, what was said of them (whenever it was said), what a teacher answered when it was asked about
them again, what a rollout noted of them, feedback of before the date whose interaction never came, and records that
were put into quarantine before it. An interaction that is in a dataset stays, and what was said of it: the holdout of
an earlier turn must stay out of training, and a version's lineage ends at its interactions.
(`flywheel forget` erases from datasets, too.)

A file that has been read is not read again, so its old rows do not come back: its cursor says where to go on. A file
under another name, or of which something lies in quarantine still, is read from its start; what it brings is deleted
by the next run. Where the records in quarantine are old enough to be deleted, their files count as read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.policy import of_conversation
from infra.database.session import session
from infra.database.tables import (
    Cursor,
    Dataset,
    DatasetItem,
    Feedback,
    Interaction,
    Quarantine,
    RolloutCall,
    TeacherAnswer,
    now,
)
from infra.settings import SetupError
from tasks.ingest import workloads

Progress = Callable[[int, int, str], None]
BATCH = 1000
IN_DATASET = select(DatasetItem.interaction_id).where(DatasetItem.interaction_id == Interaction.id).exists()


def prune(
    before: date,
    workload: str | None = None,
    dry_run: bool = False,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Delete what is from before a day (UTC), in batches of their own transactions; killed, it goes on when run again.

    Args:
        workload: Only this one's interactions and what was said of them; orphaned feedback and quarantine, which are of
            no workload, stay then.
        dry_run: Delete nothing and say what would be deleted.

    Returns:
        `interactions` deleted by workload; `feedback` on them, `orphans` (feedback without an interaction) and
        `quarantine` deleted; `kept`, interactions by the dataset that keeps them; `read_again`, sources that will be
        read from their start.

    Raises:
        SetupError: The workload has no traffic, or the date is in the future.
    """
    limit = datetime.combine(before, time(), UTC)
    if limit > now():
        raise SetupError(f"before {before} would delete everything; give a day that has come, such as {now().date()}")
    known = workloads()
    if workload is not None and workload not in known:
        raise SetupError(f"workload {workload!r} has no traffic; known are {', '.join(known[:20]) or 'none yet'}")
    names = known if workload is None else [workload]
    result = forecast(limit, names, workload is None)
    if dry_run and workload is None:
        result["orphans"] = orphans(limit, dry_run=True)
    if not dry_run:
        total = sum(result["interactions"].values())
        counts: Counter[str] = Counter(feedback=0, orphans=0, quarantine=0)
        deleted: Counter[str] = Counter()
        for name in names:
            for gone, said in interactions(name, limit):
                deleted[name] += gone
                counts["feedback"] += said
                if progress:
                    progress(min(deleted.total(), total), total, "prune")
        if workload is None:
            counts["orphans"] = orphans(limit, dry_run=False)
            counts["quarantine"] = quarantine(limit)
            settle(limit)
        result |= {"interactions": {name: deleted[name] for name in names if deleted[name]}, **counts}
    with session(write=False) as db:
        again = select(func.count()).where(Cursor.position["quarantined"].as_integer() > 0)
        result["read_again"] = db.scalar(again) or 0
    return {"before": before.isoformat(), "dry_run": dry_run, **result}


def forecast(limit: datetime, names: list[str], all_workloads: bool) -> dict[str, Any]:
    """What there is to delete, and what keeps the rest, counted by the database."""
    with session(write=False) as db:
        old = and_(Interaction.workload.in_(names), Interaction.at < limit)
        goes = select(Interaction.workload, func.count()).where(old, ~IN_DATASET).group_by(Interaction.workload)
        said = select(func.count(Feedback.id.distinct())).join(
            Interaction, Interaction.external_id == Feedback.record_id
        )
        stays = (
            select(DatasetItem.dataset_id, Dataset.workload, func.count())
            .join(Interaction, Interaction.id == DatasetItem.interaction_id)
            .join(Dataset, Dataset.id == DatasetItem.dataset_id)
            .where(old)
            .group_by(DatasetItem.dataset_id, Dataset.workload)
            .order_by(DatasetItem.dataset_id)
        )
        bad = select(func.count()).select_from(Quarantine).where(Quarantine.created < limit)
        return {
            "interactions": {name: n for name, n in db.execute(goes)},
            "feedback": db.scalar(said.where(old, ~IN_DATASET)) or 0,
            "orphans": 0,
            "quarantine": db.scalar(bad) or 0 if all_workloads else 0,
            "kept": [{"dataset_id": d, "workload": w, "interactions": n} for d, w, n in db.execute(stays)],
        }


def interactions(workload: str, limit: datetime) -> Iterator[tuple[int, int]]:
    """Delete a workload's interactions and what was said of them; how many of each, a batch at a time.

    A batch is locked before it is looked up in the datasets: a `curate` that goes on beside either has them already, or
    finds them gone.
    """
    at, number = datetime.min.replace(tzinfo=UTC), 0
    while True:
        with session() as db:
            page = db.execute(
                select(Interaction.id, Interaction.at, Interaction.external_id)
                .where(
                    Interaction.workload == workload, Interaction.at < limit, Interaction.at >= at,
                    or_(Interaction.at > at, Interaction.id > number),
                )
                .order_by(Interaction.at, Interaction.id)
                .limit(BATCH)
                .with_for_update()
            ).all()  # fmt: skip
            if not page:
                return
            of = select(DatasetItem.interaction_id).where(among(db, DatasetItem.interaction_id, [r.id for r in page]))
            kept = set(db.scalars(of))
            gone = {row.id: row.external_id for row in page if row.id not in kept}
            said = _unsay(db, gone)
            db.execute(delete(TeacherAnswer).where(among(db, TeacherAnswer.interaction_id, sorted(gone))))
            db.execute(delete(RolloutCall).where(among(db, RolloutCall.id, sorted(gone.values()))))
            db.execute(delete(Interaction).where(among(db, Interaction.id, sorted(gone))))
            at, number = page[-1].at, page[-1].id
        yield len(gone), said


def _unsay(db: Session, gone: dict[int, str]) -> int:
    """Delete what was said of interactions, unless another source has one of the same id that stays."""
    names = sorted(set(gone.values()))
    same = db.execute(
        select(Interaction.id, Interaction.external_id).where(among(db, Interaction.external_id, names))
    ).all()
    stay = {row.external_id for row in same if row.id not in gone}
    doomed = list(db.scalars(select(Feedback.id).where(among(db, Feedback.record_id, sorted({*names} - stay)))))
    db.execute(delete(Feedback).where(among(db, Feedback.id, doomed)))
    return len(doomed)


def orphans(limit: datetime, dry_run: bool) -> int:
    """Delete old feedback that has neither an interaction nor, where it is about one, a conversation; how much."""
    there = select(Interaction.id).where(Interaction.external_id == Feedback.record_id).exists()
    deleted = last = 0
    while True:
        with session(write=not dry_run) as db:
            old = select(Feedback).where(Feedback.id > last, Feedback.at < limit, ~there)
            page = list(db.scalars(old.order_by(Feedback.id).limit(BATCH)))
            if not page:
                return deleted
            last = page[-1].id
            about = sorted({row.record_id for row in page if of_conversation(row)})
            spoken_of: set[str] = set()
            if about:  # no index helps here: all interactions are walked through, once a batch
                wanted = select(Interaction.conversation).where(among(db, Interaction.conversation, about))
                spoken_of = set(db.scalars(wanted.where(or_(Interaction.at >= limit, IN_DATASET)).distinct()))
            doomed = [row.id for row in page if not (of_conversation(row) and row.record_id in spoken_of)]
            if not dry_run:
                db.execute(delete(Feedback).where(among(db, Feedback.id, doomed)))
        deleted += len(doomed)


def quarantine(limit: datetime) -> int:
    """Delete what was put into quarantine before; how much."""
    deleted = 0
    while True:
        with session() as db:
            old = list(db.scalars(select(Quarantine.id).where(Quarantine.created < limit).limit(BATCH)))
            db.execute(delete(Quarantine).where(among(db, Quarantine.id, old)))
        deleted += len(old)
        if len(old) < BATCH:
            return deleted


def settle(limit: datetime) -> None:
    """Let sources count as read whose records in quarantine have all been deleted."""
    with session() as db:
        for cursor in db.scalars(select(Cursor).where(Cursor.moved < limit)):
            if cursor.position.get("quarantined"):
                cursor.position = {**cursor.position, "quarantined": 0}
