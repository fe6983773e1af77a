"""Candidates → scorecards: teacher, champion and candidates on the same holdout, on the same machine.

What is expected of an item is what a person said, by a label or a correction, else the answer the teacher gave when it
was logged. A teacher scored by its logged answers (there is none to ask anew) therefore agrees with itself by
construction, and only labels and corrections can count against it; asked anew it differs where its answers are not
deterministic. What an endpoint was asked before, for `curate` or for a scorecard, it is not asked again, so with its
relabelled answers it agrees, too. An item that it refuses (its filter, its context) is a wrong answer, as it would be
in service, and counted in `unanswered`; if it fails otherwise there is no scorecard.

The share that a classifier leaves to the teacher is on the scorecard; `release` adds the teacher's part of the cost.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from infra.settings import SetupError, settings
from tasks.metrics import BESIDE, MetricSpec, Perplexity, Quality
from tasks.metrics.cost import Prices
from tasks.scoring.asked import Answers, Asking, Row, StandIn, ask_artifact, ask_teacher, holdout
from tasks.scoring.scorecards import read_answers, score, write_items
from tasks.teachers import LocalTeacher, teacher_for

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EvaluateSpec:
    """What is measured.

    Attributes:
        metric: What an answer is worth; the gate compares what that comes to.
        beside: Told on the scorecard as well; each is absent where it says nothing.
        latency_sample: Holdout requests that are asked one at a time, after all were asked `parallel` at a time.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    metric: Annotated[MetricSpec, Field(description="What the gate compares")] = Quality()  # noqa: RUF009 (frozen)
    beside: Annotated[tuple[MetricSpec, ...], Field(description="Metrics that are told as well")] = BESIDE
    latency_sample: Annotated[int, Field(ge=1, description="Requests timed one at a time")] = 32
    parallel: Annotated[int, Field(ge=1, le=256, description="Requests at a time for throughput")] = 8
    prices: Annotated[Prices, Field(title="Prices", description="What machines and tokens cost, in USD")] = Prices()  # noqa: RUF009

    @property
    def asking(self) -> Asking:
        surprise = any(isinstance(metric, Perplexity) for metric in (self.metric, *self.beside))
        return Asking(self.latency_sample, self.parallel, self.prices, surprise)


def evaluate_teacher(
    dataset_id: str, spec: EvaluateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Score the teacher: asked anew if it can be, else by its logged answers (and the latencies in the logs).

    Speed and cost are measured where its weights are on this machine; an endpoint's are not known.
    """
    from tasks.curate import load

    dataset = load(dataset_id)
    teacher = teacher_for(dataset.workload)
    digest = _hash(teacher.artifact()) if isinstance(teacher, LocalTeacher) else None
    name = "teacher" if teacher.name == "teacher" else f"teacher ({teacher.name})"

    def ask(rows: list[Row]) -> Answers:
        told = _named(progress, name)
        if isinstance(teacher, LocalTeacher):
            return _measure(teacher.artifact(), rows, dataset, spec, told)
        return ask_teacher(teacher, rows, spec.prices, progress or told)

    return _scorecard(dataset, spec, "teacher", teacher.identity, name, digest, ask, flow_run_id)


def evaluate_champion(
    dataset_id: str, spec: EvaluateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Score the version that serves now; {} if none does."""
    from infra import registry
    from tasks.curate import load

    dataset = load(dataset_id)
    serving = registry.champion(dataset.workload)
    if serving is None:
        return {}
    name = f"champion {serving.version} ({serving.tags.get('name', 'unnamed')})"

    def ask(rows: list[Row]) -> Answers:
        return _measure(serving.folder, rows, dataset, spec, _named(progress, name))

    subject = f"champion:{serving.version}"
    return _scorecard(dataset, spec, subject, serving.artifact_hash, name, serving.artifact_hash, ask, flow_run_id)


def evaluate_candidate(
    dataset_id: str,
    candidate_id: str,
    spec: EvaluateSpec,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Score a candidate: its files from disk, by its engine.

    Raises:
        SetupError: There is no such candidate, or its files are not what was made.
    """
    from infra.database.session import session
    from infra.database.tables import Candidate
    from tasks.curate import load

    dataset = load(dataset_id)
    with session(write=False) as db:
        candidate = db.get(Candidate, candidate_id)
    if candidate is None:
        raise SetupError(f"candidate {candidate_id!r} is unknown; `flywheel quantize` makes one and prints its id")
    folder = Path(candidate.path)
    if (actual := _hash(folder)) != candidate.artifact_hash:
        raise SetupError(
            f"candidate {candidate_id} has files with hash {actual[:12]}, made was {candidate.artifact_hash[:12]}; "
            f"remove {folder} and quantize again"
        )

    def ask(rows: list[Row]) -> Answers:
        return _measure(folder, rows, dataset, spec, _named(progress, candidate.name))

    return _scorecard(
        dataset, spec, f"candidate:{candidate_id}", actual, candidate.name, actual, ask, flow_run_id
    )  # fmt: skip


def candidates_of(dataset_id: str) -> list[str]:
    """Ids of the candidates of every student trained on a dataset, newest first."""
    from sqlalchemy import select

    from infra.database.session import session
    from infra.database.tables import Candidate, Student

    query = (
        select(Candidate.id)
        .join(Student, Candidate.student_id == Student.id)
        .where(Student.dataset_id == dataset_id)
        .order_by(Candidate.created.desc(), Candidate.id)
    )
    with session(write=False) as db:
        return list(db.scalars(query))


def _measure(folder: Path, rows: list[Row], dataset: "Dataset", spec: EvaluateSpec, told: Progress) -> Answers:
    def stand_in() -> StandIn:
        card = evaluate_teacher(dataset.id, spec, progress=told)
        late = math.inf if card["latency_p50_ms"] is None else card["latency_p50_ms"]
        return StandIn(read_answers(_items(card["scorecard_id"])), late, card["usd_per_1000"])

    return ask_artifact(folder, rows, spec.asking, stand_in, told)


def _named(progress: Progress | None, name: str) -> Progress:
    def told(done: int, total: int, _: str) -> None:
        if progress:
            progress(done, total, f"score {name}".replace(",", ""))

    return told


def _scorecard(
    dataset: "Dataset",
    spec: EvaluateSpec,
    subject: str,
    identity: str,
    name: str,
    digest: str | None,
    ask: Callable[[list[Row]], Answers],
    flow_run_id: str | None,
) -> dict[str, Any]:
    """The scorecard of a subject, made if it is not there yet: a row, and a file of its items."""
    from infra.database.session import session
    from infra.database.tables import Scorecard, now

    parents = json.dumps([dataset.id, subject, identity, asdict(spec)], sort_keys=True)
    card_id = hashlib.sha256(parents.encode()).hexdigest()[:16]
    path = _items(card_id)
    with session() as db:
        known = db.get(Scorecard, card_id)
        if known is not None and path.exists():
            known.created = now()  # the gate reads a subject's newest scorecard: the one that was asked for last
            return {"scorecard_id": card_id, "subject": subject, **known.metrics}
    rows = holdout(dataset)
    answers = ask(rows)
    answered = answers.to(rows)
    metrics, items = score(answered, spec.metric, spec.beside)
    metrics = {"name": name, **metrics, **answers.measured, "asked": answers.asked, "machine": platform.node()}
    write_items(path, answered, items)
    with session() as db:
        db.merge(
            Scorecard(
                id=card_id, dataset_id=dataset.id, subject=subject, artifact_hash=digest, path=str(path),
                metrics=metrics, spec=asdict(spec), flow_run_id=flow_run_id, created=now(),
            )
        )  # fmt: skip
    return {"scorecard_id": card_id, "subject": subject, **metrics}


def _items(card_id: str) -> Path:
    return settings().home / "scorecards" / card_id / "items.parquet"


def _hash(folder: Path) -> str:
    from infra.registry import artifact_hash

    return artifact_hash(folder)
