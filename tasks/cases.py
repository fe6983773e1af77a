"""Interactions on their way into a dataset, with what was said of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.database.messages import answer_of
from infra.database.tables import Feedback, Interaction
from infra.registry import is_student
from infra.settings import SetupError
from tasks.policy import Judgement, meaning, of_conversation


@dataclass
class Case:
    """An interaction on its way into the dataset.

    Attributes:
        key: Its place in time, the same in every database.
        answer: As logged, None if it cannot be imitated.
        student: Whether a student of ours gave it.
        messages, tools: What the student will read.
    """

    id: int
    key: tuple[datetime, str, str]
    conversation: str
    request: dict[str, Any]
    answer: dict[str, Any] | None
    student: bool
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    opinions: list[Feedback] = field(default_factory=list)
    judgement: Judgement = field(default_factory=lambda: Judgement("nothing"))
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    expected: dict[str, Any] | None = None
    origin: str = "logged"
    cluster: int = -1

    def row(self) -> dict[str, Any]:
        rejected = self.judgement.rejected
        return {
            "interaction_id": self.id, "record": f"{self.key[1]}:{self.key[2]}", "conversation": self.conversation,
            "at": self.key[0].isoformat(), "messages": self.messages, "tools": self.tools, "expected": self.expected,
            "logged": self.answer, "origin": self.origin,
            "weight": self.judgement.weight if self.origin != "relabelled" else 1.0,
            "rejected": None if rejected is None or meaning(rejected) == meaning(self.expected or {}) else rejected,
            "latency_ms": self.latency_ms, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }  # fmt: skip


def gather(db: Session, workload: str, limit: int) -> list[Case]:
    """The workload's latest interactions, earliest first, with what was said of them.

    Raises:
        SetupError: There are none.
    """
    mine = select(Interaction).where(Interaction.workload == workload)
    latest = mine.order_by(Interaction.at.desc(), Interaction.source.desc(), Interaction.external_id.desc())
    rows = list(db.scalars(latest.limit(limit)))
    if not rows:
        known = list(db.scalars(select(Interaction.workload).distinct().order_by(Interaction.workload)))
        names = ", ".join(known[:20]) or "none yet: read some traffic with `flywheel ingest jsonl PATH`"
        raise SetupError(f"workload {workload!r} has no traffic; known are {names}")
    cases = {row.id: _case(row) for row in rows}
    said = select(Interaction.id, Feedback).join(Feedback, Feedback.record_id == Interaction.external_id)
    for number, opinion in db.execute(said.where(Interaction.workload == workload)):
        if number in cases and not of_conversation(opinion):
            cases[number].opinions.append(opinion)
    turns = Counter(case.conversation for case in cases.values())
    lone = {case.conversation: case for case in cases.values() if turns[case.conversation] == 1}
    about = select(Interaction.id, Feedback).join(Feedback, Feedback.record_id == Interaction.conversation)
    for number, opinion in db.execute(about.where(Interaction.workload == workload)):
        if number in cases and of_conversation(opinion) and cases[number].conversation in lone:
            cases[number].opinions.append(opinion)
    return sorted(cases.values(), key=lambda case: case.key)


def _case(row: Interaction) -> Case:
    return Case(
        row.id, (row.at, row.source, row.external_id), row.conversation, row.request, answer_of(row.response),
        is_student(row.model), row.latency_ms, row.prompt_tokens, row.completion_tokens,
    )  # fmt: skip


def deduplicated(cases: Iterable[Case], left_out: Counter[str]) -> list[Case]:
    """Each request and answer once, the earliest; what was said of its copies is said of it."""
    kept: dict[str, Case] = {}
    for case in cases:
        answer = meaning(case.answer) if case.answer else None
        same = json.dumps([case.request["messages"], case.request.get("tools"), answer], sort_keys=True)
        first = kept.setdefault(hashlib.sha256(same.encode()).hexdigest(), case)
        if first is not case:
            first.opinions += case.opinions
            left_out["exact duplicate"] += 1
    return list(kept.values())
