"""The holdout asked: what a model answers to it, and what that takes on this machine.

What is measured is what would be served: the artifact's files, as their engine runs them. What a classifier abstains
from is measured as the gateway serves it: the teacher's answer, from its scorecard, with the teacher's latency and cost
on top.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.settings import SetupError, settings
from tasks.metrics import Answered
from tasks.metrics.cost import Prices
from tasks.metrics.energy import Energy
from tasks.metrics.latency import latency, token_latency
from tasks.metrics.memory import Memory
from tasks.metrics.size import size
from tasks.metrics.throughput import throughput
from tasks.teachers import Answer, EndpointTeacher, LoggedTeacher, Question
from tasks.teachers.answers import GIVEN_UP

if TYPE_CHECKING:
    from infra.engines import Engine, Reply
    from tasks.dataset.frozen import Dataset

Progress = Callable[[int, int, str], None]
Message = dict[str, Any]
Row = dict[str, Any]
PAGE = 500


class StandIn(NamedTuple):
    """The teacher where a classifier abstains: its answers to the holdout, its latency (`inf`: not known), its cost."""

    answers: list[Message]
    latency_ms: float
    usd: float | None


@dataclass(frozen=True)
class Asking:
    """How a model is asked (`EvaluateSpec`).

    Attributes:
        surprise: Whether the engine is asked how surprised it is by what is expected.
    """

    latency_sample: int
    parallel: int
    prices: Prices
    surprise: bool


@dataclass(frozen=True)
class Answers:
    """A model's answers to the holdout, in its order, and what they cost; None where it was not measured here.

    Attributes:
        probabilities, surprises: Of each, where the engine says them (`metrics.Answered`); else empty.
        asked: `anew` or `as logged`.
    """

    messages: list[Message]
    measured: dict[str, Any]
    asked: str
    probabilities: list[float | None] = field(default_factory=list)
    surprises: list[float | None] = field(default_factory=list)

    def to(self, rows: Sequence[Row]) -> list[Answered]:
        unknown: list[float | None] = [None] * len(rows)
        columns = (rows, self.messages, self.probabilities or unknown, self.surprises or unknown)
        return [Answered(*parts) for parts in zip(*columns, strict=True)]


def holdout(dataset: "Dataset") -> list[Row]:
    """The holdout's rows with their requests whole: the prefix that was taken off, and their `response_format`.

    Raises:
        SetupError: There is none.
    """
    from sqlalchemy import select

    from infra.database.among import among
    from infra.database.session import session
    from infra.database.tables import Interaction

    rows = dataset.split("holdout")
    if not rows:
        raise SetupError(f"dataset {dataset.id} has no holdout to score on; curate more traffic")
    formats: dict[int, Any] = {}
    with session(write=False) as db:
        for start in range(0, len(rows), PAGE):
            ids = [row["interaction_id"] for row in rows[start : start + PAGE]]
            wanted = select(Interaction.id, Interaction.request["response_format"])
            formats |= {number: said for number, said in db.execute(wanted.where(among(db, Interaction.id, ids)))}
    for row in rows:
        if dataset.prefix is not None:
            row["messages"], row["tools"] = dataset.prefix.restore(row["messages"])
        row["response_format"] = formats.get(row["interaction_id"])
    return rows


def ask_artifact(
    folder: Path, rows: Sequence[Row], how: Asking, stand_in: Callable[[], StandIn], told: Progress
) -> Answers:
    """Load an artifact and ask it the holdout: all of it `parallel` at a time, then a sample one at a time."""
    from infra.engines import load

    memory = Memory()
    engine = load(folder)
    try:
        requests = [_as_read(row, engine) for row in rows]
        engine.chat(requests[:1])  # the first request pays for what is allocated once
        energy, started = Energy(), time.monotonic()
        replies = engine.chat(requests, told, parallel=how.parallel)
        seconds = time.monotonic() - started
        joules = energy.report(len(rows))
        step = max(1, len(requests) // how.latency_sample)
        alone = engine.chat(requests[::step][: how.latency_sample], parallel=1)
        surprises = engine.surprise(requests, [row["expected"] for row in rows]) if how.surprise else None
        measured = memory.report() | joules
    finally:
        engine.close()
    abstained = [_abstained(reply) for reply in replies]
    teacher = stand_in() if any(abstained) else StandIn([], math.inf, 0)
    written = sum(reply.completion_tokens for reply in replies)
    waited = [reply.latency_ms + (teacher.latency_ms if _abstained(reply) else 0) for reply in alone]
    share, usd = sum(abstained) / len(replies), how.prices.by_hour(seconds / len(replies))
    measured |= {
        "bytes": size(folder), "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": written, "abstained": share,
        **throughput(written, len(replies), seconds),
        **{name: ms if ms != math.inf else None for name, ms in latency(waited).items()},
        **token_latency([(reply.first_token_ms, reply.latency_ms, reply.completion_tokens) for reply in alone]),
        "usd_per_1000": None if usd is None or teacher.usd is None else usd + share * teacher.usd,
    }  # fmt: skip
    messages = [teacher.answers[i] if abstained[i] else reply.message for i, reply in enumerate(replies)]
    sure = [None if abstained[i] else reply.probability for i, reply in enumerate(replies)]
    return Answers(messages, measured, "anew", sure, surprises or [])


def ask_teacher(
    teacher: EndpointTeacher | LoggedTeacher, rows: Sequence[Row], prices: Prices, told: Progress
) -> Answers:
    """A teacher's answers to the requests exactly as the application sent them, as far as they were stored.

    Raises:
        SetupError: It failed at some again and again.
    """
    from sqlalchemy import select

    from infra.database.among import among
    from infra.database.session import session
    from infra.database.tables import Interaction

    answers: list[Answer] = []
    for start in range(0, len(rows), PAGE):
        ids = [row["interaction_id"] for row in rows[start : start + PAGE]]
        with session(write=False) as db:
            found = db.execute(select(Interaction.id, Interaction.request).where(among(db, Interaction.id, ids)))
            sent = {number: request for number, request in found}
        page = teacher.answer([Question(number, sent[number]) for number in ids], _later(told, start, len(rows)))
        answers += [answer._replace(logprobs=None) for answer in page]  # long, and of no use here
    reasons = Counter(answer.reason for answer in answers if answer.message is None)
    if failed := reasons[GIVEN_UP]:
        raise SetupError(
            f"{teacher.name} failed at {failed} of {len(rows)} items of the holdout again and again, so it is not "
            "scored; what it answered is kept: run again"
        )
    nothing: Message = {"role": "assistant", "content": None}
    used = [(row["prompt_tokens"], row["completion_tokens"]) for row in rows]
    if isinstance(teacher, EndpointTeacher):
        used = [(answer.prompt_tokens, answer.completion_tokens) for answer in answers if answer.message]
    unknown = dict.fromkeys(("bytes", "memory_bytes", "joules_per_request", "tokens_per_second", "seconds_per_request"))
    late = [row["latency_ms"] for row in rows if row["latency_ms"] is not None]
    measured: dict[str, Any] = {**unknown, **latency(late), **token_latency([])}
    measured["usd_per_1000"] = _paid(prices).by_token(used)
    if reasons:
        measured["unanswered"] = dict(sorted(reasons.items()))
    if isinstance(teacher, EndpointTeacher):
        measured["teacher_use"] = teacher.tally.report()
    asked = "as logged" if isinstance(teacher, LoggedTeacher) else "anew"
    return Answers([answer.message or nothing for answer in answers], measured, asked)


def _as_read(row: Row, engine: "Engine") -> dict[str, Any]:
    """The request as this artifact reads it: without the prefix that is baked into it.

    A request with another prefix than the artifact's is asked in full. In service the teacher would answer it.
    """
    full = {"messages": row["messages"], "tools": row["tools"]}
    return engine.strip(full) or full


def _abstained(reply: "Reply") -> bool:
    from infra.engines.engine import ABSTAINED

    return reply.finish_reason == ABSTAINED


def _later(told: Progress, before: int, total: int) -> Progress:
    return lambda done, _, what: told(before + done, total, what)


def _paid(prices: Prices) -> Prices:
    """With the settings' prices of the teacher, where the spec has none."""
    chosen = settings()
    prompt = chosen.teacher_prompt_price or None if prices.prompt is None else prices.prompt
    completion = chosen.teacher_completion_price or None if prices.completion is None else prices.completion
    return Prices(prices.machine_hour, prompt, completion)
