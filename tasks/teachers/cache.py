"""Answers of teachers in the database: what was answered once is not asked, and paid, again.

An answer is found by the sha256 of who was asked (an endpoint's address, a local model's fingerprint) and of the
request as it was sent, in canonical JSON; the model that an endpoint is asked for stands in the request. So relabelling
and the scoring of the holdout share answers, and a run that was killed has lost none but those on their way. An
endpoint that serves another model under the same name is not noticed: name it otherwise (FLYWHEEL_TEACHER_MODEL).

Interactions are stored redacted, so a teacher that is asked again sees the redacted request. Its answer is redacted as
well before it is stored or used; where that changes it, its log-probabilities, which spell it out, are left out. An
answer belongs to the interaction that it was asked for and is erased with it (`forget`, `prune`); where another
interaction has the same request, the teacher is then asked again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.jsontext import dumps
from infra.database.session import session
from infra.database.tables import Interaction, TeacherAnswer, now
from infra.privacy.redaction import redactor
from tasks.teachers.answers import Answer, Question
from tasks.teachers.tally import Tally

Progress = Callable[[int, int, str], None]
Keep = Callable[[Mapping[str, Answer]], None]
KEPT = ("message", "finish_reason", "logprobs", "prompt_tokens", "completion_tokens")
BATCH = 500


def through(
    teacher: str,
    questions: Sequence[Question],
    bodies: Sequence[dict[str, Any]],
    ask: Callable[[Mapping[str, dict[str, Any]], Keep], None],
    tally: Tally,
    progress: Progress | None,
) -> list[Answer]:
    """An answer a question, in order; equal requests are asked once.

    Args:
        teacher: Who is asked.
        bodies: The requests as they are sent.
        ask: Asks what is not known yet, by key, and hands over answers as they come.
    """
    keys = [key_of(teacher, body) for body in bodies]
    known = recall(keys)
    tally.recalled += sum(key in known for key in keys)
    # Of those with one request the earliest is asked for.
    total = len(set(keys))
    open_ones = {key: n for n, key in reversed(list(enumerate(keys))) if key not in known}

    def keep(answers: Mapping[str, Answer]) -> None:
        found = {key: redacted(answer) for key, answer in answers.items()}
        store({key: (questions[open_ones[key]].interaction_id, a) for key, a in found.items() if a.message is not None})
        known.update(found)
        if progress:
            spent = f", {tally.cost:.2f} USD" if tally.cost else ""
            progress(len(known), total, f"teacher answers{spent}")

    if open_ones:
        ask({key: bodies[n] for key, n in sorted(open_ones.items(), key=lambda item: item[1])}, keep)
    return [known[key] for key in keys]


def key_of(teacher: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(dumps([teacher, body], sort_keys=True)).hexdigest()


def recall(keys: Sequence[str]) -> dict[str, Answer]:
    """The answers that are there."""
    wanted = sorted(set(keys))
    columns = [TeacherAnswer.id, *(getattr(TeacherAnswer, name) for name in KEPT)]
    found: dict[str, Answer] = {}
    with session(write=False) as db:
        for start in range(0, len(wanted), BATCH):
            rows = db.execute(select(*columns).where(among(db, TeacherAnswer.id, wanted[start : start + BATCH])))
            found |= {row.id: Answer(*row[1:]) for row in rows}
    return found


def store(answers: Mapping[str, tuple[int, Answer]]) -> None:
    """Keep answers, each with its interaction, unless that was erased in the meantime."""
    if not answers:
        return
    with session() as db:
        there = _locked(db, sorted({number for number, _ in answers.values()}))
        rows = [
            {"id": key, "interaction_id": number, **{name: getattr(answer, name) for name in KEPT}, "created": now()}
            for key, (number, answer) in sorted(answers.items())
            if number in there
        ]
        if rows:
            made: Any = {"sqlite": sqlite, "postgresql": postgresql}[db.get_bind().dialect.name]
            db.execute(made.insert(TeacherAnswer).on_conflict_do_nothing(index_elements=["id"]), rows)


def _locked(db: Session, interactions: Sequence[int]) -> set[int]:
    """Those that are there, and stay while this session lasts."""
    wanted = select(Interaction.id).where(among(db, Interaction.id, interactions))
    return set(db.scalars(wanted.with_for_update(read=True)))


def redacted(answer: Answer) -> Answer:
    message = redactor().value(answer.message)
    return answer if message == answer.message else answer._replace(message=message, logprobs=None)
