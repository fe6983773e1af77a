"""Rows: what happened.

Every produced row keeps the spec that made it, its parents' ids, the Prefect flow-run id and the MLflow run id: the
lineage from a registered version back to each interaction and feedback that shaped it.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """An aware time in UTC on every database; SQLite alone would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


# A number is spent on every row that PostgreSQL refuses, too; 32 bits of them run out.
Serial = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
Digest = Annotated[str, mapped_column(String(64), primary_key=True)]
Mark = Annotated[str, mapped_column(String(32), default="", server_default="")]
Created = Annotated[datetime, mapped_column(UTCDateTime, default=now)]
Payload = Annotated[dict[str, Any], mapped_column(JSON)]


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Produced:
    """What every row that a stage made carries: the spec and the runs that made it."""

    spec: Mapped[Payload]
    flow_run_id: Mapped[str | None]
    mlflow_run_id: Mapped[str | None]
    created: Mapped[Created]


class Interaction(Base):
    """One request and its response, as logged. Unique by (source, external_id).

    Two indexes and no more, for each costs an ingest a tenth of its time: the unique one begins with the external id,
    by which feedback finds its interaction whatever its source, the other gives a workload's traffic in order of time,
    page by page. `digest` tells whether two records of one id are the same (`records.content`).
    """

    __tablename__ = "interaction"
    __table_args__ = (
        UniqueConstraint("external_id", "source"),
        Index("ix_interaction_workload_at", "workload", "at", "id"),
    )

    id: Mapped[Serial]
    source: Mapped[str]
    external_id: Mapped[str]
    workload: Mapped[str]
    conversation: Mapped[str]
    client: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    model: Mapped[str | None]
    request: Mapped[Payload]
    response: Mapped[Payload]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    latency_ms: Mapped[float | None]
    digest: Mapped[Mark]
    created: Mapped[Created]


class Feedback(Base):
    """A thumb, rating, correction, preference or label about the interaction whose external id is `record_id`.

    It may arrive before its interaction: there is no foreign key, the join is made when it is read.
    """

    __tablename__ = "feedback"
    __table_args__ = (UniqueConstraint("source", "external_id"),)

    id: Mapped[Serial]
    source: Mapped[str]
    external_id: Mapped[str]
    record_id: Mapped[str] = mapped_column(index=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    kind: Mapped[str]
    value: Mapped[Any] = mapped_column(JSON)
    digest: Mapped[Mark]
    created: Mapped[Created]


class Quarantine(Base):
    """A record that could not be understood: where it was, its raw bytes, and why. Unique by (source, digest)."""

    __tablename__ = "quarantine"
    __table_args__ = (UniqueConstraint("source", "digest"),)

    id: Mapped[Serial]
    source: Mapped[str]
    position: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    reason: Mapped[str]
    created: Mapped[Created]


class Cursor(Base):
    """How far a source has been read. Moves only in the transaction that stores what was read."""

    __tablename__ = "cursor"

    source: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[Payload]
    moved: Mapped[Created]


class Forgotten(Base):
    """A tombstone of what was erased, by which it is known if a log brings it again; `infra/database/forgotten.py`."""

    __tablename__ = "forgotten"

    id: Mapped[Digest]
    created: Mapped[Created]


class TeacherAnswer(Base):
    """What a teacher answered to a request (`tasks/teachers/cache.py`). The id hashes teacher and request as sent.

    `interaction_id` is the interaction it was asked for: the answer goes when that is erased. `logprobs` is in the form
    of `tasks/teachers/logprobs.py`.
    """

    __tablename__ = "teacher_answer"

    id: Mapped[Digest]
    interaction_id: Mapped[int] = mapped_column(ForeignKey("interaction.id"), index=True)
    message: Mapped[Payload]
    finish_reason: Mapped[str | None]
    logprobs: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    created: Mapped[Created]


class Dataset(Produced, Base):
    """A frozen train/validation/holdout split. Its id is the hash of its rows and spec; `path` holds the Parquet."""

    __tablename__ = "dataset"

    id: Mapped[Digest]
    workload: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    report: Mapped[Payload]


class DatasetItem(Base):
    """Which interaction went into which split of which dataset."""

    __tablename__ = "dataset_item"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"), primary_key=True)
    interaction_id: Mapped[int] = mapped_column(ForeignKey("interaction.id"), primary_key=True, index=True)
    split: Mapped[str]


class Student(Produced, Base):
    """A student fine-tuned on a dataset, as a folder of safetensors. Its id is the hash of its parents and spec."""

    __tablename__ = "student"

    id: Mapped[Digest]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"), index=True)
    path: Mapped[str]
    report: Mapped[Payload]


class Candidate(Produced, Base):
    """A quantized export of a student. Its id hashes parents and spec, `artifact_hash` its files."""

    __tablename__ = "candidate"

    id: Mapped[Digest]
    student_id: Mapped[str] = mapped_column(ForeignKey("student.id"), index=True)
    name: Mapped[str]
    format: Mapped[str]
    path: Mapped[str]
    artifact_hash: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)


class Scorecard(Produced, Base):
    """Metrics of one model (a candidate, the champion or the teacher) on one dataset's holdout.

    `subject` is `candidate:<id>`, `champion:<version>` or `teacher`. `path` holds each item's answer and scores.
    """

    __tablename__ = "scorecard"

    id: Mapped[Digest]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"), index=True)
    subject: Mapped[str]
    artifact_hash: Mapped[str | None] = mapped_column(String(64))
    path: Mapped[str]
    metrics: Mapped[Payload]


class Verdict(Produced, Base):
    """What the gate said about one candidate: promote, reject or inconclusive, with its reasons."""

    __tablename__ = "verdict"

    id: Mapped[Digest]
    workload: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    candidate_id: Mapped[str] = mapped_column(ForeignKey("candidate.id"))
    reference: Mapped[str]
    outcome: Mapped[str]
    reasons: Mapped[Payload]
    model_version: Mapped[str | None]


class Rollout(Produced, Base):
    """A version on its way to serve, in steps (`infra/rollout`); of those that have not ended, one a workload.

    `reference` is what it is compared with: the number of the version that serves, or "teacher". `step` counts from 0;
    behind the last it is their number, and the version serves as soon as the registry says so. `tally` is what the
    present step has come to, in the form of `infra/rollout/tally.py`. `status` is running, promoted, rolled back or
    aborted.
    """

    __tablename__ = "rollout"
    __table_args__ = (
        Index(
            "uq_rollout_under_way",
            "workload",
            unique=True,
            sqlite_where=text("ended IS NULL"),
            postgresql_where=text("ended IS NULL"),
        ),
    )

    id: Mapped[Serial]
    workload: Mapped[str] = mapped_column(index=True)
    version: Mapped[str]
    reference: Mapped[str]
    step: Mapped[int]
    step_began: Mapped[datetime] = mapped_column(UTCDateTime)
    tally: Mapped[Payload]
    status: Mapped[str]
    ended: Mapped[datetime | None] = mapped_column(UTCDateTime)


class RolloutDecision(Base):
    """What was decided in a rollout: when, why, and on what evidence. Rows are only added."""

    __tablename__ = "rollout_decision"

    id: Mapped[Serial]
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollout.id"), index=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    step: Mapped[int]
    action: Mapped[str]
    reason: Mapped[str]
    evidence: Mapped[Payload]


class RolloutCall(Base):
    """What came of a call in one arm of a rollout, `student` or `reference`; in shadow it has both.

    `id` is the external id of the interaction, whose traffic it is. `answer` is what the student would have said in
    shadow; nobody was sent it, it is no interaction and is never learned from. `opinion` is 1 or -1 once somebody has
    said what he thinks of the answer that he was sent.
    """

    __tablename__ = "rollout_call"
    __table_args__ = (Index("ix_rollout_call_conversation", "rollout_id", "step", "arm", "conversation"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    arm: Mapped[str] = mapped_column(String(16), primary_key=True)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollout.id"))
    step: Mapped[int]
    conversation: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    failed: Mapped[bool]
    latency_ms: Mapped[float]
    opinion: Mapped[int | None]
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Promotion(Base):
    """A move of a workload's alias `champion`. A workload's rows in order of `at` are the story of who served.

    `version` is None where the alias was deleted and the teacher serves, `replaced` where none served before. `by` is
    release, rollback, rollout or hand; `noticed` is how it came to be known: flow, webhook or poll. `verdict_id` is the
    verdict that lets the version serve, None where there is none. `at` is None until the alias has moved.
    """

    __tablename__ = "promotion"

    workload: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[str | None]
    replaced: Mapped[str | None]
    by: Mapped[str] = mapped_column(String(16))
    noticed: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdict.id"))
    flow_run_id: Mapped[str | None]
    at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created: Mapped[Created]


class Signal(Base):
    """That a wheel should turn, as it was told to Prefect: why, and when; `name` is feedback, drift or quality."""

    __tablename__ = "signal"

    id: Mapped[Serial]
    workload: Mapped[str] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(String(16))
    said: Mapped[str]
    created: Mapped[Created]


class Delivery(Base):
    """A webhook delivery that was taken, by its id: it is not taken again. Gone when its time alone refuses it."""

    __tablename__ = "delivery"

    id: Mapped[Digest]
    created: Mapped[Created]
