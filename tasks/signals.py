"""Should a workload's wheel turn? Three signals, from the database alone: enough new feedback, drift, quality fell.

**Feedback**: what people said (thumbs, ratings, corrections, preferences, labels) since the workload's last dataset was
frozen, or at all where there is none, is counted.

**Drift**: requests since the champion's dataset was frozen are held against the last that the dataset saw, of each
conversation the first: by how long the last message is, and by how new it is, the share of its 5-character pieces that
half of the earlier requests do not have (those of the other half say how new is usual). Each is a two-sample
Kolmogorov-Smirnov test, whose distance D says how much of the traffic has moved: a test alone would fire at any change
that is large enough to be seen.

**Quality**: of the champion's conversations, the share with an objection (a thumb down, a low rating, a correction) in
its latest answers is held against that in its first ones, by Fisher's exact test, one-sided. It fires where the share
rose by `quality` at least.

The three p-values are corrected by Holm's procedure. They are looked at again and again, so `alpha` is small, and what
follows a false alarm is a turn of the wheel, whose gate lets nothing worse through. A sequential test, as rollouts
have it (`infra/rollout/sequential.py`), was rejected: over months of good answers it loses the wealth by which it would
notice a bad week. At most `sample` requests of each side are read, however many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from infra.database.tables import Feedback

FEWEST = 100  # conversations on each side of a comparison
LATEST = 20_000  # pieces of feedback that are looked at


@dataclass(frozen=True)
class SignalSpec:
    """When a wheel is started by what happens."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    feedback: Annotated[
        int, Field(ge=1, le=LATEST, description="Pieces of feedback since the last dataset that start a wheel")
    ] = 200
    drift: Annotated[
        float, Field(gt=0, le=1, description="Distance D of today's requests from the champion's that starts one")
    ] = 0.2
    quality: Annotated[
        float, Field(gt=0, le=1, description="Rise of the share of the champion's conversations objected to that does")
    ] = 0.03
    alpha: Annotated[float, Field(gt=0, le=0.5, description="Chance of a false alarm in one look")] = 0.001
    sample: Annotated[int, Field(ge=FEWEST, description="Requests that are looked at on each side")] = 2000
    cool_down: Annotated[
        float, Field(ge=0, description="Hours after a signal in which a workload's wheel is not started by another")
    ] = 24.0


class Found(NamedTuple):
    """What a comparison came to; `p` is None where there is too little to compare."""

    value: float
    p: float | None
    said: str


def signals(workload: str, spec: SignalSpec = SignalSpec()) -> list[dict[str, Any]]:
    """The signals of a workload, gravest first, each with name, value, threshold, whether it fired, and a sentence."""
    from infra.database.session import session
    from tasks.gate.holm import holm

    with session(write=False) as db:
        count, of_all = new_feedback(db, workload)
        champion = serving(db, workload)
        fell = quality(db, workload, champion, spec.sample)
        moved = drift(db, workload, champion, spec.sample)
    tests = [fell, *moved]
    levels = holm([1.0 if test.p is None else test.p for test in tests], spec.alpha, len(tests))
    shown = [level.shown for level in levels]
    furthest = max(zip(moved, shown[1:], strict=True), key=lambda found: (found[1], found[0].value))
    return [
        {
            "name": "quality", "value": round(fell.value, 4), "threshold": spec.quality,
            "fired": shown[0] and fell.value >= spec.quality, "said": fell.said,
        },
        {
            "name": "drift", "value": round(furthest[0].value, 4), "threshold": spec.drift,
            "fired": furthest[1] and furthest[0].value >= spec.drift, "said": furthest[0].said,
        },
        {
            "name": "feedback", "value": count, "threshold": spec.feedback, "fired": count >= spec.feedback,
            "said": f"{count:,} pieces of feedback {of_all}; {spec.feedback:,} start a wheel",
        },
    ]  # fmt: skip


def due(workload: str, seen: Sequence[dict[str, Any]], spec: SignalSpec) -> dict[str, Any] | None:
    """The gravest of the signals that fired, unless one was told within the cool-down; its `said` says them all."""
    from sqlalchemy import select

    from infra.database.session import session
    from infra.database.tables import Signal, now

    fired = [signal for signal in seen if signal["fired"]]
    with session(write=False) as db:
        last = db.scalar(select(Signal).where(Signal.workload == workload).order_by(Signal.id.desc()).limit(1))
    if not fired or (last and now() - last.created < timedelta(hours=spec.cool_down)):
        return None
    return {**fired[0], "said": "; ".join(signal["said"] for signal in fired)}


def told(workload: str, signal: dict[str, Any]) -> None:
    """Write down that a signal was told: the cool-down begins."""
    from infra.database.session import session
    from infra.database.tables import Signal

    with session() as db:
        db.add(Signal(workload=workload, name=signal["name"], said=signal["said"]))


def new_feedback(db: "Session", workload: str) -> tuple[int, str]:
    """How much was said of a workload's answers since its last dataset, and since when that is."""
    from sqlalchemy import func, select

    from infra.database.tables import Dataset, Feedback, Interaction

    newest = select(Dataset).where(Dataset.workload == workload).order_by(Dataset.created.desc()).limit(1)
    dataset = db.scalar(newest)
    latest = select(Feedback.record_id, Feedback.created).order_by(Feedback.id.desc()).limit(LATEST).subquery()
    of_workload = select(func.count()).select_from(latest)
    of_workload = of_workload.join(Interaction, Interaction.external_id == latest.c.record_id)
    of_workload = of_workload.where(Interaction.workload == workload)
    if dataset is None:
        return db.scalar(of_workload) or 0, "and no dataset yet"
    since = f"since dataset {dataset.id[:8]} of {dataset.created:%Y-%m-%d %H:%M} UTC"
    return db.scalar(of_workload.where(latest.c.created > dataset.created)) or 0, since


class Champion(NamedTuple):
    """Who serves: since when, and until when the traffic is that its dataset was made of (None: not known)."""

    version: str
    since: datetime
    until: datetime | None


def serving(db: "Session", workload: str) -> Champion | None:
    """The champion, by the story of the promotions; None where the teacher serves."""
    from sqlalchemy import func, select

    from infra.database.tables import DatasetItem, Interaction, Promotion, Verdict

    moves = select(Promotion).where(Promotion.workload == workload, Promotion.at.is_not(None))
    last = db.scalar(moves.order_by(Promotion.number.desc()).limit(1))
    if last is None or last.version is None or last.at is None:
        return None
    verdicts = select(Verdict.dataset_id).where(Verdict.workload == workload, Verdict.model_version == last.version)
    dataset_id = db.scalar(verdicts.order_by(Verdict.created.desc()).limit(1))
    items = select(func.max(Interaction.at)).join(DatasetItem, DatasetItem.interaction_id == Interaction.id)
    until = db.scalar(items.where(DatasetItem.dataset_id == dataset_id)) if dataset_id else None
    return Champion(last.version, last.at, until)


def quality(db: "Session", workload: str, champion: Champion | None, sample: int) -> Found:
    """Whether more of the champion's conversations are objected to than at first."""
    from scipy.stats import fisher_exact
    from sqlalchemy import select

    from infra.database.tables import Interaction
    from infra.registry import served_name

    if champion is None:
        return Found(0.0, None, "no champion serves")
    answers = select(Interaction.conversation, Interaction.external_id, Interaction.at).where(
        Interaction.workload == workload,
        Interaction.at >= champion.since,
        Interaction.model == served_name(workload, champion.version),
    )
    first = list(db.execute(answers.order_by(Interaction.at).limit(sample)))
    latest = [row for row in db.execute(answers.order_by(Interaction.at.desc()).limit(sample))]
    begun = {row.conversation for row in first}
    if first:
        latest = [row for row in latest if row.at > first[-1].at and row.conversation not in begun]
    before, after = objected(db, first), objected(db, latest)
    if min(len(before), len(after)) < FEWEST:
        few = f"{len(before):,} first and {len(after):,} later conversations"
        return Found(0.0, None, f"version {champion.version} has answered {few}, of {FEWEST} each that are compared")
    rates = [sum(part) / len(part) for part in (before, after)]
    table = [[sum(after), len(after) - sum(after)], [sum(before), len(before) - sum(before)]]
    p = float(fisher_exact(table, alternative="greater").pvalue)
    said = f"of version {champion.version}'s conversations {rates[1]:.1%} are objected to, {rates[0]:.1%} at first"
    return Found(rates[1] - rates[0], p, f"{said} (p {p:.2g})")


def objected(db: "Session", answers: Sequence[Any]) -> list[bool]:
    """Of each conversation, whether one of these answers in it was objected to."""
    from sqlalchemy import select

    from infra.database.among import among
    from infra.database.tables import Feedback

    said = select(Feedback).where(among(db, Feedback.record_id, [row.external_id for row in answers]))
    against = {opinion.record_id for opinion in db.scalars(said) if objection(opinion)}
    found: dict[str, bool] = {}
    for row in answers:
        found[row.conversation] = found.get(row.conversation, False) or row.external_id in against
    return list(found.values())


def objection(opinion: "Feedback") -> bool:
    from infra.database.policy import opinion_sign

    if opinion.kind == "preference":
        return False
    return opinion.kind == "correction" or opinion_sign(opinion) < 0


def drift(db: "Session", workload: str, champion: Champion | None, sample: int) -> list[Found]:
    """How far requests have moved since the champion's dataset: in length, and in what they say."""
    if champion is None or champion.until is None:
        why = "no champion serves" if champion is None else f"version {champion.version} passed no gate"
        return [Found(0.0, None, why)] * 2
    before = asked(db, workload, champion.until, sample, later=False)
    after = asked(db, workload, champion.until, sample, later=True)
    if len(before) < 2 * FEWEST or len(after) < FEWEST:
        few = f"{len(before):,} conversations until the champion's dataset and {len(after):,} since"
        return [Found(0.0, None, f"{few}, of {2 * FEWEST} and {FEWEST} that are compared")] * 2
    known, usual = before[::2], before[1::2]
    return [
        _apart([len(text) for text in before], [len(text) for text in after], "lengths of requests"),
        _apart(novelty(known, usual), novelty(known, after), "words of requests"),
    ]


def _apart(before: Sequence[float], after: Sequence[float], what: str) -> Found:
    from scipy.stats import ks_2samp

    found = ks_2samp(before, after)
    said = f"{what} have moved by D = {found.statistic:.2f} since the champion's dataset (p {found.pvalue:.2g}"
    return Found(float(found.statistic), float(found.pvalue), f"{said}, {len(after):,} conversations)")


def asked(db: "Session", workload: str, until: datetime, sample: int, later: bool) -> list[str]:
    """The last message of each conversation's first request, of the last requests until a time or since it."""
    from sqlalchemy import select

    from infra.database.tables import Interaction
    from infra.prefix import text_of

    query = select(Interaction.conversation, Interaction.request).where(Interaction.workload == workload)
    query = query.where(Interaction.at > until if later else Interaction.at <= until)
    found: dict[str, str] = {}
    for conversation, request in db.execute(query.order_by(Interaction.at.desc()).limit(sample)):
        messages = request.get("messages") or [{}]
        found[conversation] = text_of(messages[-1].get("content")) or ""  # the earliest comes last, and stays
    return list(found.values())


def novelty(known: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Of each text the share of its 5-character pieces that none of the known ones has."""
    import numpy as np

    from tasks.dataset.similarity import shingles

    vocabulary = np.unique(np.concatenate([shingles(text) for text in known]))
    return [float(1 - np.isin(shingles(text), vocabulary).mean()) for text in texts]
