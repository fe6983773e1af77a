"""Candidates → scorecards: teacher, champion and candidates on the same holdout, on the same machine.

What is measured is what would be served: the artifact's files, verified by their hash, as their engine runs them.

What is expected of an item is the correction a person gave, else the answer the teacher gave when it was logged. A
teacher scored by its logged answers (there is none to ask anew) therefore agrees with itself by construction, and only
corrections can count against it; asked anew it differs where its answers are not deterministic. What an endpoint was
asked before, for `curate` or for a scorecard, it is not asked again, so with its relabelled answers it agrees, too. An
item that it refuses (its filter, its context) is a wrong answer, as it would be in service, and counted in
`unanswered`; if it fails otherwise there is no scorecard.
"""

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import SetupError, settings
from tasks.metrics.latency import latency, throughput
from tasks.metrics.size import size
from tasks.scorecards import score, write_items
from tasks.teachers import Answer, EndpointTeacher, LocalTeacher, LoggedTeacher, Question, teacher_for
from tasks.teachers.answers import GIVEN_UP

if TYPE_CHECKING:
    from infra.engines import Engine
    from tasks.curate import Dataset

Progress = Callable[[int, int, str], None]
Message = dict[str, Any]
PAGE = 500


@dataclass(frozen=True)
class EvaluateSpec:
    """What is measured.

    Attributes:
        metric: What makes an item right; the gate compares its rate.
        latency_sample: Holdout requests that are asked one at a time, after all were asked `parallel` at a time.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    metric: Literal["quality", "exact_match", "tool_call"] = "quality"
    latency_sample: Annotated[int, Field(ge=1, description="Requests timed one at a time")] = 32
    parallel: Annotated[int, Field(ge=1, le=256, description="Requests at a time for throughput")] = 8


@dataclass(frozen=True)
class Answers:
    """A model's answers to the holdout, in its order, and what they cost; None where it was not measured here."""

    messages: list[Message]
    measured: dict[str, Any]
    asked: str


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

    def ask() -> Answers:
        if isinstance(teacher, LocalTeacher):
            return _measure(teacher.artifact(), dataset, spec, name, progress)
        return _asked(teacher, dataset, progress)

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

    def ask() -> Answers:
        return _measure(serving.folder, dataset, spec, name, progress)

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

    def ask() -> Answers:
        return _measure(folder, dataset, spec, candidate.name, progress)

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


def _measure(folder: Path, dataset: "Dataset", spec: EvaluateSpec, name: str, progress: Progress | None) -> Answers:
    """Load an artifact and ask it the holdout: all of it `parallel` at a time, then a sample one at a time."""
    from infra.engines import load

    def told(done: int, total: int, _: str) -> None:
        if progress:
            progress(done, total, f"score {name}".replace(",", ""))

    engine = load(folder)
    try:
        requests = _requests(dataset, engine)
        engine.chat(requests[:1])  # the first request pays for what is allocated once
        started = time.monotonic()
        replies = engine.chat(requests, told, parallel=spec.parallel)
        seconds = time.monotonic() - started
        step = max(1, len(requests) // spec.latency_sample)
        alone = engine.chat(requests[::step][: spec.latency_sample], parallel=1)
    finally:
        engine.close()
    written = sum(reply.completion_tokens for reply in replies)
    prompt = sum(reply.prompt_tokens for reply in replies)
    measured: dict[str, Any] = {
        "bytes": size(folder), "prompt_tokens": prompt, "completion_tokens": written,
        **throughput(written, len(replies), seconds), **latency([reply.latency_ms for reply in alone]),
    }  # fmt: skip
    return Answers([reply.message for reply in replies], measured, "anew")


def _requests(dataset: "Dataset", engine: "Engine") -> list[dict[str, Any]]:
    """The holdout's requests as this artifact reads them: without the prefix that is baked into it.

    A request with another prefix than the artifact's is asked in full. In service the teacher would answer it.
    """
    found = []
    for row in dataset.split("holdout"):
        full = {"messages": row["messages"], "tools": row["tools"]}
        if dataset.prefix is not None:
            full["messages"], full["tools"] = dataset.prefix.restore(row["messages"])
        found.append(engine.strip(full) or full)
    return found


def _asked(teacher: EndpointTeacher | LoggedTeacher, dataset: "Dataset", progress: Progress | None) -> Answers:
    """A teacher's answers to the requests exactly as the application sent them, as far as they were stored."""
    from sqlalchemy import select

    from infra.database.among import among
    from infra.database.session import session
    from infra.database.tables import Interaction

    rows = dataset.split("holdout")
    answers: list[Answer] = []

    def told(done: int, _: int, what: str) -> None:
        if progress:
            progress(len(answers) + done, len(rows), what)

    for start in range(0, len(rows), PAGE):
        ids = [row["interaction_id"] for row in rows[start : start + PAGE]]
        with session(write=False) as db:
            found = db.execute(select(Interaction.id, Interaction.request).where(among(db, Interaction.id, ids)))
            sent = {number: request for number, request in found}
        page = teacher.answer([Question(number, sent[number]) for number in ids], told)
        answers += [answer._replace(logprobs=None) for answer in page]  # long, and of no use here
    reasons = Counter(answer.reason for answer in answers if answer.message is None)
    if failed := reasons[GIVEN_UP]:
        raise SetupError(
            f"{teacher.name} failed at {failed} of {len(rows)} items of the holdout again and again, so it is not "
            "scored; what it answered is kept: run again"
        )
    nothing: Message = {"role": "assistant", "content": None}
    unknown = dict.fromkeys(("bytes", "tokens_per_second", "seconds_per_request"))
    measured: dict[str, Any] = {**unknown, **_logged_latency(rows)}
    if reasons:
        measured["unanswered"] = dict(sorted(reasons.items()))
    if isinstance(teacher, EndpointTeacher):
        measured["teacher_use"] = teacher.tally.report()
    asked = "as logged" if isinstance(teacher, LoggedTeacher) else "anew"
    return Answers([answer.message or nothing for answer in answers], measured, asked)


def _logged_latency(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    return latency([row["latency_ms"] for row in rows if row["latency_ms"] is not None])


def _scorecard(
    dataset: "Dataset",
    spec: EvaluateSpec,
    subject: str,
    identity: str,
    name: str,
    digest: str | None,
    ask: Callable[[], Answers],
    flow_run_id: str | None,
) -> dict[str, Any]:
    """The scorecard of a subject, made if it is not there yet: a row, and a file of its items."""
    from infra.database.session import session
    from infra.database.tables import Scorecard, now

    parents = json.dumps([dataset.id, subject, identity, asdict(spec)], sort_keys=True)
    card_id = hashlib.sha256(parents.encode()).hexdigest()[:16]
    path = settings().home / "scorecards" / card_id / "items.parquet"
    with session() as db:
        known = db.get(Scorecard, card_id)
        if known is not None and path.exists():
            known.created = now()  # the gate reads a subject's newest scorecard: the one that was asked for last
            return {"scorecard_id": card_id, "subject": subject, **known.metrics}
    rows = dataset.split("holdout")
    if not rows:
        raise SetupError(f"dataset {dataset.id} has no holdout to score on; curate more traffic")
    answers = ask()
    metrics, items = score(rows, answers.messages, spec.metric)
    metrics = {"name": name, **metrics, **answers.measured, "asked": answers.asked, "machine": platform.node()}
    write_items(path, rows, answers.messages, items)
    with session() as db:
        db.merge(
            Scorecard(
                id=card_id, dataset_id=dataset.id, subject=subject, artifact_hash=digest, path=str(path),
                metrics=metrics, spec=asdict(spec), flow_run_id=flow_run_id, created=now(),
            )
        )  # fmt: skip
    return {"scorecard_id": card_id, "subject": subject, **metrics}


def _hash(folder: Path) -> str:
    from infra.registry import artifact_hash

    return artifact_hash(folder)
