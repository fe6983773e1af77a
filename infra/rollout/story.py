"""What became of a workload's latest rollout, told from the database: for people, in a terminal or on a page."""

from datetime import datetime
from statistics import median
from typing import Any

from sqlalchemy import func, select

from infra.database.session import session
from infra.database.tables import Rollout, RolloutCall, RolloutDecision, now
from infra.rollout.spec import RolloutSpec
from infra.rollout.state import RUNNING
from infra.rollout.tally import Tally

LATENCIES = 10_000  # of the latest calls of an arm, for their median


def story(workload: str) -> dict[str, Any] | None:
    """The latest rollout of a workload, None where there was none.

    Returns:
        version, reference, status, step (from 1; steps + 1 behind the last), steps, began, ended, waits_for, p (by
        measure, of the present step), arms (a row for each step and arm), decisions (at, step, action, reason).
    """
    with session(write=False) as db:
        latest = select(Rollout).where(Rollout.workload == workload).order_by(Rollout.id.desc()).limit(1)
        row = db.scalar(latest)
        if row is None:
            return None
        spec, tally = RolloutSpec.from_json(row.spec), Tally.from_json(row.tally)
        said = select(RolloutDecision).where(RolloutDecision.rollout_id == row.id).order_by(RolloutDecision.id)
        decisions = [
            {"at": one.at.isoformat(), "step": one.step + 1, "action": one.action, "reason": one.reason}
            for one in db.scalars(said)
        ]
        mine = RolloutCall.rollout_id == row.id
        failed = func.sum(func.cast(RolloutCall.failed, RolloutCall.step.type))
        heard, objected = func.count(RolloutCall.opinion), func.count().filter(RolloutCall.opinion == -1)
        counted = (
            select(RolloutCall.step, RolloutCall.arm, func.count(), failed, heard, objected)
            .where(mine)
            .group_by(RolloutCall.step, RolloutCall.arm)
        )
        arms = []
        for step, arm, requests, failures, opinions, objections in sorted(
            tuple(found) for found in db.execute(counted)
        ):
            times = select(RolloutCall.latency_ms).where(mine, RolloutCall.step == step, RolloutCall.arm == arm)
            spent = db.scalars(times.order_by(RolloutCall.at.desc()).limit(LATENCIES)).all()
            arms.append({
                "step": step + 1, "share": weight(spec, step), "answered by": arm, "requests": requests,
                "failed": failures, "p50 ms": round(median(spent)), "opinions": opinions, "objections": objections,
            })  # fmt: skip
        going = row.status == RUNNING and row.step < len(spec.steps)
        return {
            "version": row.version, "reference": row.reference, "status": row.status, "step": row.step + 1,
            "steps": len(spec.steps), "began": row.created.isoformat(), "ended": _iso(row.ended),
            "waits_for": tally.lacks(spec.steps[row.step], (now() - row.step_began).total_seconds()) if going else None,
            "p": {measure: test.p for measure, test in tally.tests.items()} if going else {},
            "arms": arms, "decisions": decisions,
        }  # fmt: skip


def weight(spec: RolloutSpec, step: int) -> str:
    share = spec.steps[step].weight
    return f"{share:.0%}" if share else "shadow"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
