"""Interactions on their way into a dataset, page by page, with what was said of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Text, cast, collate, or_, select, tuple_
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.jsontext import dumps, from_column, number_of
from infra.database.messages import answer_of
from infra.database.policy import Judgement, meaning, of_conversation
from infra.database.session import session
from infra.database.tables import Feedback, Interaction
from infra.registry import is_student
from infra.settings import SetupError
from tasks.ingest import workloads_of

PAGE = 250  # a response with log-probabilities has hundreds of kilobytes
Key = tuple[datetime, str, str]
"""An interaction's place in time, the same in every database: time, source and external id."""


@dataclass
class Case:
    """An interaction on its way into the dataset.

    Attributes:
        response: As logged, in JSON: read, one with log-probabilities takes ten times the memory.
        answer: As logged, None if it cannot be imitated.
        student: Whether a student of ours gave it.
        opinions: What was said of it, not of its conversation.
        messages, tools: What the student will read.
        logprobs: The teacher's of `expected`, where that is word for word its answer (tasks/teachers/logprobs.py).
        unanswered: Why the teacher, who was asked, gave no answer.
    """

    id: int
    key: Key
    conversation: str
    request: dict[str, Any]
    response: str
    answer: dict[str, Any] | None
    student: bool
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    opinions: list[Feedback] = field(default_factory=list)
    of_conversation: list[Feedback] = field(default_factory=list)
    judgement: Judgement = field(default_factory=lambda: Judgement("nothing"))
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    expected: dict[str, Any] | None = None
    origin: str = "logged"
    logprobs: list[Any] | None = None
    unanswered: str = ""

    def row(self) -> dict[str, Any]:
        rejected = self.judgement.rejected
        return {
            "interaction_id": self.id, "record": f"{self.key[1]}:{self.key[2]}", "conversation": self.conversation,
            "at": self.key[0].isoformat(), "messages": self.messages, "tools": self.tools, "expected": self.expected,
            "logged": self.answer, "origin": self.origin,
            "weight": self.judgement.weight if self.origin != "relabelled" else 1.0,
            "rejected": None if rejected is None or meaning(rejected) == meaning(self.expected or {}) else rejected,
            "latency_ms": self.latency_ms, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "logprobs": self.logprobs,
        }  # fmt: skip

    def sameness(self) -> int:
        """A number that equal requests with equal answers share."""
        answer = meaning(self.answer) if self.answer else None
        return number_of(dumps([self.request["messages"], self.request.get("tools"), answer], sort_keys=True))


class Window(NamedTuple):
    """A workload's latest interactions, from a place in time on; what comes in later is another reading's."""

    workload: str
    since: Key
    until: Key

    @classmethod
    def latest(cls, workload: str, limit: int) -> "Window":
        """The last `limit` interactions.

        Raises:
            SetupError: There are none.
        """
        asked = select(Interaction.at, Interaction.source, Interaction.external_id)
        asked = asked.where(Interaction.workload == workload)
        with session(write=False) as db:
            forwards = (Interaction.at, *_place(db))
            backwards = asked.order_by(*(column.desc() for column in forwards))
            last = db.execute(backwards.limit(1)).first()
            if last is None:
                raise _unknown(db, workload)
            first = db.execute(backwards.offset(limit - 1).limit(1)).first()
            first = first or db.execute(asked.order_by(*forwards).limit(1)).first()
        assert first is not None
        return cls(workload, (first[0], first[1], first[2]), (last[0], last[1], last[2]))

    def requests(self) -> Iterator[dict[str, Any]]:
        """What was asked, earliest first."""
        with session(write=False) as db:
            yield from db.scalars(self._ordered(db, select(Interaction.request)))

    def pages(self) -> Iterator[list[Case]]:
        """The cases, earliest first, with what was said of them; a page at a time is in memory."""
        columns: tuple[Any, ...] = (
            Interaction.id, Interaction.at, Interaction.source, Interaction.external_id, Interaction.conversation,
            Interaction.request, cast(Interaction.response, Text).label("response"), Interaction.model,
            Interaction.latency_ms, Interaction.prompt_tokens, Interaction.completion_tokens,
        )  # fmt: skip
        with session(write=False) as db:
            for rows in db.execute(self._ordered(db, select(*columns))).partitions(PAGE):
                page = [
                    Case(
                        row.id, (row.at, row.source, row.external_id), row.conversation, row.request,
                        row.response, answer_of(from_column(row.response)), is_student(row.model), row.latency_ms,
                        row.prompt_tokens, row.completion_tokens,
                    )
                    for row in rows
                ]  # fmt: skip
                _listen(db, page)
                yield page

    def _ordered(self, db: Session, asked: Select[Any]) -> Select[Any]:
        """In order of time, from a cursor on the server's side."""
        place = _place(db)
        within = (
            Interaction.workload == self.workload, Interaction.at >= self.since[0], Interaction.at <= self.until[0],
            or_(Interaction.at > self.since[0], tuple_(*place) >= self.since[1:]),
            or_(Interaction.at < self.until[0], tuple_(*place) <= self.until[1:]),
        )  # fmt: skip
        return asked.where(*within).order_by(Interaction.at, *place).execution_options(yield_per=PAGE)


def _place(db: Session) -> list[ColumnElement[str]]:
    """What tells apart interactions of one time, compared byte by byte, as SQLite does, whatever the language."""
    columns: list[ColumnElement[str]] = [Interaction.__table__.c.source, Interaction.__table__.c.external_id]
    return [column if db.get_bind().dialect.name == "sqlite" else collate(column, "C") for column in columns]


def _listen(db: Session, page: list[Case]) -> None:
    """Give each case of a page what was said of it and of its conversation."""
    named: dict[str, list[Case]] = {}
    for case in page:
        for name in {case.key[2], case.conversation}:
            named.setdefault(name, []).append(case)
    for opinion in db.scalars(select(Feedback).where(among(db, Feedback.record_id, list(named)))):
        for case in named[opinion.record_id]:
            if of_conversation(opinion):
                if opinion.record_id == case.conversation:
                    case.of_conversation.append(opinion)
            elif opinion.record_id == case.key[2]:
                case.opinions.append(opinion)
        db.expunge(opinion)


def _unknown(db: Session, workload: str) -> SetupError:
    known = list(workloads_of(db))
    names = ", ".join(known[:20]) or "none yet: read some traffic with `flywheel ingest jsonl PATH`"
    return SetupError(f"workload {workload!r} has no traffic; known are {names}")
