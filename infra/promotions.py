"""Who let which version serve, when and why: every move of the alias `champion` is a row of the database.

Release, rollback and rollout move it through here: the row is written first, the alias moves, the row gets its time. A
process that dies in between leaves a row without a time, which counts for nothing unless the alias did move; then
whoever sees that gives it its time. So those who look at the registry (the gateway each second, and when MLflow's
webhook calls; `redeploy`) can tell a move of ours from one by hand, which has no row, and write that row. Two that
notice it at once meet at the primary key, and one row stays.

Every candidate is a version, and one that a person moved the alias to is served: people decide. Where no verdict of the
gate lets it serve, the log, `redeploy`'s result, `status` and the version itself (`promoted_by = hand, not gated`) say
so, also where it came to serve by a rollout that a person began, or by a rollback. MLflow does not tell who the person
was.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from infra import registry
from infra.database.session import session
from infra.database.tables import Promotion, Verdict, now
from infra.settings import SetupError

T = TypeVar("T")
log = logging.getLogger("flywheel.registry")

Mover = Literal["release", "rollback", "rollout", "hand"]
Way = Literal["flow", "webhook", "poll"]
HAND: Mover = "hand"
TAG = "promoted_by"
TRIES = 5
SERVES_BECAUSE: dict[str, str] = {
    HAND: "the alias was moved by hand", "rollout": "a person had it go through a rollout",
    "rollback": "a rollback gave it its place back",
}  # fmt: skip


def promote(workload: str, version: str, by: Mover, reason: str, flow_run_id: str | None = None) -> None:
    """Let a version serve, and say so. Where it serves already nothing changes."""
    _intend(workload, version, by, reason, flow_run_id)
    registry.promote(workload, version)
    _settle(workload, version)


def rollback(workload: str, reason: str, flow_run_id: str | None = None) -> tuple[str, str]:
    """Give `previous` its place back, and say so; returns (champion, previous) as they are now.

    Raises:
        SetupError: There is no previous champion.
    """
    before = registry.previous_number(workload)
    if before is not None:
        _intend(workload, before, "rollback", reason, flow_run_id)
    champion, previous = registry.rollback(workload)
    _settle(workload, champion)
    return champion, previous


def notice(workload: str, version: str | None, way: Way) -> Promotion | None:
    """The row of how a version came to serve, written now if the alias was moved by hand; None if nothing ever served.

    Args:
        version: What serves, by the registry; None where nothing does.
        way: How that came to be known.
    """
    row, new = _numbered(lambda: _noticed(workload, version, way))
    if new and row is not None:
        _tell(row)
    return row


def warning(row: Promotion | None) -> str | None:
    """What a person should know about how the version came to serve; None where the gate let it."""
    if row is None or row.by not in SERVES_BECAUSE or row.verdict_id is not None:
        return None
    if row.version is None:
        return f"no version of {row.workload!r} serves: its alias was deleted by hand; the teacher answers"
    return (
        f"version {row.version} of {row.workload!r} did not pass the gate: it serves because "
        f"{SERVES_BECAUSE[row.by]}; `flywheel release --rollback --workload {row.workload}` undoes it"
    )


def serving() -> dict[str, str]:
    """What serves, by workload, as far as it has been noticed."""
    with session(write=False) as db:
        moves = db.scalars(select(Promotion).where(Promotion.at.is_not(None)).order_by(Promotion.at, Promotion.number))
        last = {move.workload: move.version for move in moves}
    return {workload: version for workload, version in last.items() if version is not None}


class Watch:
    """What the gateway sees of the registry each second; only what is new is looked up."""

    def __init__(self) -> None:
        self.seen: dict[str, str] | None = None

    def look(self, champions: Mapping[str, str]) -> None:
        """Notice what moved since the last look; what cannot be written down now is tried again at the next."""
        try:
            if self.seen is None:
                self.seen = serving()
            for workload in sorted(self.seen.keys() | champions.keys()):
                version = champions.get(workload)
                if self.seen.get(workload) == version:
                    continue
                notice(workload, version, "poll")
                if version is None:
                    del self.seen[workload]
                else:
                    self.seen[workload] = version
        except SetupError as problem:
            log.warning("who serves cannot be written down: %s", problem)


def _intend(workload: str, version: str, by: Mover, reason: str, flow_run_id: str | None) -> None:
    replaced = registry.champion_number(workload)

    def write() -> None:
        with session() as db:
            db.add(
                Promotion(
                    workload=workload, number=_next(db, workload), version=version, replaced=replaced, by=by,
                    noticed="flow", reason=reason, verdict_id=_verdict(db, workload, version), flow_run_id=flow_run_id,
                )
            )  # fmt: skip

    if replaced != version:
        _numbered(write)


def _settle(workload: str, version: str) -> None:
    """The alias has moved: give the row its time, unless somebody who saw it has done so."""
    row, _ = _numbered(lambda: _noticed(workload, version, "flow"))
    if row is not None:
        _tell(row)


def _noticed(workload: str, version: str | None, way: Way) -> tuple[Promotion | None, bool]:
    """The row, and whether it is new."""
    with session() as db:
        number = _next(db, workload)  # before it is looked for: a row that comes in between has this number
        of_it = select(Promotion).where(Promotion.workload == workload)
        settled = of_it.where(Promotion.at.is_not(None)).order_by(Promotion.at.desc(), Promotion.number.desc())
        last = db.scalar(settled.limit(1))
        if (last.version if last else None) == version:
            return last, False
        ours = of_it.where(Promotion.at.is_(None), Promotion.version == version).order_by(Promotion.number.desc())
        if (intended := db.scalar(ours.limit(1))) is not None:
            intended.at = now()
            return intended, False
        verdict = None if version is None else _verdict(db, workload, version)
        row = Promotion(
            workload=workload, number=number, version=version, replaced=last.version if last else None,
            by=HAND, noticed=way, reason="the alias was moved in MLflow", verdict_id=verdict, at=now(),
        )  # fmt: skip
        if last is None and verdict is not None:
            row.by, row.reason = "release", "it served before this was written down"
        db.add(row)
        db.flush()
        return row, True


def _numbered(write: Callable[[], T]) -> T:
    """What `write` returns, which is tried again where another process has taken its number."""
    for _ in range(TRIES):
        with suppress(IntegrityError):
            return write()
    return write()


def _next(db: Session, workload: str) -> int:
    numbers = select(Promotion.number).where(Promotion.workload == workload).order_by(Promotion.number.desc())
    return (db.scalar(numbers.limit(1)) or 0) + 1


def _verdict(db: Session, workload: str, version: str) -> str | None:
    passed = select(Verdict.id).where(
        Verdict.workload == workload, Verdict.model_version == version, Verdict.outcome == registry.PROMOTE
    )
    return db.scalar(passed.order_by(Verdict.created.desc()).limit(1))


def _tell(row: Promotion) -> None:
    """Say in the log if the gate did not let it serve, and on the version itself who did."""
    said = warning(row)
    if said:
        log.warning("%s", said)
    if row.version is None:
        return
    gated = ", not gated" if said else ""
    try:
        registry.mark(row.workload, row.version, TAG, row.by + gated)
    except SetupError as problem:  # the row is what counts
        log.warning("version %s of %r is not marked: %s", row.version, row.workload, problem)
