"""Where a rollout stands: in the database alone, so that gateways may come and go, and any number of them agree.

What came of each call is a row, and is taken into the step's tally in the transaction that adds it, with the rollout's
own row locked: two gateways take turns, and whoever brings the observation that breaks a limit also decides, before he
lets go. What is decided is a row as well, with its reason and the tally that it was decided on. The registry's aliases
follow: `challenger` when a rollout begins, `champion` (and `previous`) when its last step has held.

Opinions are read from the feedback that is stored, whoever brought it, and judged as `curate` judges them
(`database/policy.py`). What is said of a whole conversation is nobody's here: both may have spoken in it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from infra import promotions, registry
from infra.database.among import among
from infra.database.messages import answer_of
from infra.database.policy import judge, of_conversation
from infra.database.session import session
from infra.database.tables import Feedback, Interaction, Rollout, RolloutCall, RolloutDecision, now
from infra.rollout.sequential import Arm
from infra.rollout.spec import RolloutSpec
from infra.rollout.tally import Tally
from infra.settings import SetupError, settings

RUNNING, PROMOTED, ROLLED_BACK, ABORTED = "running", "promoted", "rolled back", "aborted"
TEACHER = "teacher"


@dataclass(frozen=True)
class Seen:
    """What came of a call in one arm.

    Attributes:
        call: External id of the interaction.
        step: In which it was made.
        conversation: Digest of its name.
        answer: What the student said in shadow, redacted.
    """

    call: str
    step: int
    arm: Arm
    conversation: str
    at: datetime
    failed: bool
    latency_ms: float
    answer: dict[str, Any] | None = None


class Standing(NamedTuple):
    """Where a rollout stands.

    Attributes:
        reason: Of the latest decision; empty where nobody asked.
    """

    id: int
    workload: str
    version: str
    reference: str
    spec: RolloutSpec
    step: int
    status: str
    reason: str = ""

    @property
    def full(self) -> bool:
        """Whether all steps have held, so that nothing is left but to move the alias."""
        return self.status == RUNNING and self.step == len(self.spec.steps)


def begin(
    workload: str, version: str, spec: RolloutSpec, by: promotions.Mover, reason: str, flow_run_id: str | None = None
) -> None:
    """Let a registered version serve: at once where the spec has no steps, else by them. Twice is once.

    Args:
        by: Who lets it, and for what `reason`.

    Raises:
        SetupError: Another version is under way, nothing serves that it could be compared with, or MLflow refuses.
    """
    serving = registry.champion_number(workload)
    if serving == version:
        return
    if not spec.steps:
        promotions.promote(workload, version, by, reason, flow_run_id)
        return
    if serving is None and not settings().teacher:
        raise SetupError(
            f"nothing answers for {workload!r} that version {version} could be compared with; "
            "begin without steps, or set FLYWHEEL_TEACHER"
        )
    try:
        with session() as db:
            row = Rollout(
                workload=workload, version=version, reference=serving or TEACHER, step=0, step_began=now(),
                tally=Tally().to_json(), status=RUNNING, spec=asdict(spec), flow_run_id=flow_run_id,
            )  # fmt: skip
            db.add(row)
            db.flush()
            _decided(db, row, "begin", f"version {version} against {_named(row.reference)}; {by}: {reason}")
    except IntegrityError:
        (other,) = running(workload)
        if other.version != version:
            raise SetupError(
                f"version {other.version} of {workload!r} is under way; wait for it, or stop it by `flywheel redeploy "
                f"--workload {workload} --abort`, and begin this one by `--version {version}`"
            ) from None
    registry.challenge(workload, version)


def running(workload: str | None = None) -> list[Standing]:
    """What is under way, of one workload or all."""
    with session(write=False) as db:
        wanted = select(Rollout).where(Rollout.ended.is_(None))
        return [
            _standing(row) for row in db.scalars(wanted if workload is None else wanted.filter_by(workload=workload))
        ]


def observe(rollout_id: int, seen: Sequence[Seen]) -> Standing:
    """Take what came of some calls, and decide. What is brought a second time, or after the end, changes nothing."""
    with session() as db:
        row = db.scalars(select(Rollout).where(Rollout.id == rollout_id).with_for_update()).one()
        if row.ended is None:
            tally, spec = Tally.from_json(row.tally), RolloutSpec.from_json(row.spec)
            for one in seen:
                _take(db, row, tally, spec, one)
            _listen(db, row, tally, spec)
            _decide(db, row, tally, spec)
        return _standing(row, _last(db, row))


def look(rollout_id: int, serving: str | None) -> Standing:
    """Decide by what has come without a call: opinions, time, silence, or another version that serves all at once.

    Args:
        serving: The version that serves now, or None for the teacher.
    """
    with session(write=False) as db:
        row = db.get_one(Rollout, rollout_id)
        if row.ended is not None or row.step == len(row.spec["steps"]):
            return _standing(row, _last(db, row))
    if (serving or TEACHER) != row.reference:
        said = f"{_named(serving or TEACHER)} serves now, and it was compared with {_named(row.reference)}"
        return end(rollout_id, ROLLED_BACK, said)
    return observe(rollout_id, ())


def end(rollout_id: int, status: str, reason: str) -> Standing:
    """End a rollout, unless it has ended; promoted, rolled back or aborted."""
    with session() as db:
        row = db.scalars(select(Rollout).where(Rollout.id == rollout_id).with_for_update()).one()
        if row.ended is None:
            _end(db, row, status, reason)
        return _standing(row, _last(db, row))


# -- within one transaction ----------------------------------------------------------------------------------------


def _standing(row: Rollout, reason: str = "") -> Standing:
    spec = RolloutSpec.from_json(row.spec)
    return Standing(row.id, row.workload, row.version, row.reference, spec, row.step, row.status, reason)


def _last(db: Session, row: Rollout) -> str:
    """The reason of the latest decision."""
    db.flush()
    said = select(RolloutDecision.reason).where(RolloutDecision.rollout_id == row.id)
    return db.scalar(said.order_by(RolloutDecision.id.desc()).limit(1)) or ""


def _named(version: str) -> str:
    return "the teacher" if version == TEACHER else f"version {version}"


def _take(db: Session, row: Rollout, tally: Tally, spec: RolloutSpec, seen: Seen) -> None:
    if db.get(RolloutCall, (seen.call, seen.arm)):
        return
    mine = select(RolloutCall.failed).filter_by(
        rollout_id=row.id, step=seen.step, arm=seen.arm, conversation=seen.conversation
    )
    before = list(db.scalars(mine))
    db.add(
        RolloutCall(
            id=seen.call, arm=seen.arm, rollout_id=row.id, step=seen.step, conversation=seen.conversation, at=seen.at,
            failed=seen.failed, latency_ms=seen.latency_ms, answer=seen.answer,
        )
    )  # fmt: skip
    db.flush()
    if seen.step == row.step:
        tally.answered(spec, seen.arm, now(), seen.failed, seen.latency_ms, before)


def _listen(db: Session, row: Rollout, tally: Tally, spec: RolloutSpec) -> None:
    """Take the opinions on this step's answers that have come since, in order of time."""
    if row.step == len(spec.steps) or not spec.steps[row.step].weight:  # of what was said in shadow nobody knows
        return
    calls = select(RolloutCall).filter_by(rollout_id=row.id, step=row.step, opinion=None)
    spoken_of = select(Feedback.id).where(Feedback.record_id == RolloutCall.id).exists()
    unheard = {call.id: call for call in db.scalars(calls.where(spoken_of))}
    if not unheard:
        return
    names = sorted(unheard)
    asked = select(Interaction.external_id, Interaction.response).where(among(db, Interaction.external_id, names))
    answers = {name: answer_of(response) for name, response in db.execute(asked)}
    said: dict[str, list[Feedback]] = {}
    for opinion in db.scalars(select(Feedback).where(among(db, Feedback.record_id, names)).order_by(Feedback.at)):
        if not of_conversation(opinion):
            said.setdefault(opinion.record_id, []).append(opinion)
    for name, opinions in said.items():
        sign = {"praise": 1, "nothing": 0}.get(judge(answers.get(name), opinions).rule, -1)
        if name in answers and sign:
            call = unheard[name]
            objected = select(RolloutCall.id).filter_by(
                rollout_id=row.id, step=row.step, arm=call.arm, conversation=call.conversation, opinion=-1
            )
            before = db.scalar(objected.limit(1)) is not None
            call.opinion = sign
            db.flush()
            tally.judged(spec, "student" if call.arm == "student" else "reference", now(), sign < 0, before)


def _decide(db: Session, row: Rollout, tally: Tally, spec: RolloutSpec) -> None:
    if row.step == len(spec.steps):
        return
    step, time = spec.steps[row.step], now()
    row.tally = tally.to_json()
    waited = (time - row.step_began).total_seconds()
    if breach := tally.breach(spec):
        _end(db, row, ROLLED_BACK, f"breach: {breach}")
    elif lacking := tally.lacks(step, waited):
        heard = tally.heard(step)
        quiet = (time - (datetime.fromisoformat(heard) if heard else row.step_began)).total_seconds()
        if quiet > spec.silence:
            _end(db, row, ROLLED_BACK, f"silence: nothing came for {quiet:.0f} s, and the step has {lacking}")
    else:
        following = row.step + 1
        if following < len(spec.steps):
            said = f"the step held; {spec.steps[following].weight:.0%} of conversations are the student's now"
            _decided(db, row, "step", said)
        else:
            _decided(db, row, "full", "the last step held")
        row.step, row.step_began, row.tally = following, time, Tally().to_json()


def _end(db: Session, row: Rollout, status: str, reason: str) -> None:
    row.status, row.ended = status, now()
    _decided(db, row, status, reason)


def _decided(db: Session, row: Rollout, action: str, reason: str) -> None:
    db.add(
        RolloutDecision(rollout_id=row.id, at=now(), step=row.step, action=action, reason=reason, evidence=row.tally)
    )
