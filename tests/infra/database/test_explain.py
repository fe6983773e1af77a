"""The indexes are those that the queries use: each query finds its rows by one, and none is kept for nobody.

The statements are those that the code sends, caught on their way to the database and explained with their values.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import UniqueConstraint, event, insert, select, text

from infra.database.records import feedback, interaction
from infra.database.session import database as opened
from infra.database.session import session
from infra.database.store import move_cursor, quarantine, release, store
from infra.database.tables import (
    Base,
    Candidate,
    Dataset,
    DatasetItem,
    Interaction,
    Promotion,
    Quarantine,
    Rollout,
    RolloutCall,
    RolloutDecision,
    Scorecard,
    Signal,
    Student,
    TeacherAnswer,
    Verdict,
    now,
)
from infra.promotions import notice
from infra.rollout.spec import RolloutSpec, Step
from infra.rollout.state import Seen, observe
from infra.rollout.story import story
from infra.rollout.tally import Tally
from tasks import retention
from tasks.dataset.cases import Window
from tasks.evaluate import candidates_of
from tasks.ingest import workloads
from tasks.signals import SignalSpec, due
from tasks.teachers.cache import recall
from tests.tasks.sources.test_jsonl import record

MANY = 6000
AT = datetime(2026, 9, 1, tzinfo=UTC)
MADE: dict[str, Any] = {"spec": {}, "created": now()}
STEPS = asdict(RolloutSpec((Step(0.5),)))


def name(n: int) -> str:
    return f"{n:064x}"


def row(n: int) -> Any:
    said = {**record(n), "workload_id": f"w{n % 20}", "timestamp": 1756684800 + n}
    return interaction(said, source=("jsonl", "otel")[n % 2], at=AT)


def opinion(n: int) -> Any:
    said = {"id": f"f{n}", "record_id": str(n), "kind": "thumb", "value": 1}
    return feedback(said, source="jsonl", at=AT + timedelta(seconds=n))


def bad(n: int) -> Quarantine:
    return Quarantine(source=("jsonl", "otel")[n % 2], position=f"a:{n}", digest=name(n), raw=b"?", reason="no JSON")


@pytest.fixture
def filled(database: str) -> str:
    """Some thousands of rows in every table, and their statistics."""
    some = range(2000)
    with session() as db:
        store(db, [row(n) for n in range(MANY)] + [opinion(n) for n in range(MANY)])
        quarantine(db, [bad(n) for n in range(MANY)])
        for n in some:
            move_cursor(db, f"jsonl:{n}", {"rows": n})
        ids = list(db.scalars(select(Interaction.id)))
        rows: dict[type[Base], list[dict[str, Any]]] = {
            Dataset: [{"id": name(n), "workload": f"w{n}", "path": "", "report": {}} for n in some],
            Student: [{"id": name(n), "dataset_id": name(n), "path": "", "report": {}} for n in some],
            Candidate: [
                {
                    "id": name(n), "student_id": name(n), "name": "", "format": "", "path": "", "artifact_hash": "",
                    "size": 1,
                }
                for n in some
            ],
            Scorecard: [
                {"id": name(n), "dataset_id": name(n), "subject": "", "path": "", "metrics": {}} for n in some
            ],
            Verdict: [
                {
                    "id": name(n), "workload": f"w{n}", "dataset_id": name(n), "candidate_id": name(n), "reference": "",
                    "outcome": "reject", "reasons": {},
                }
                for n in some
            ],
        }  # fmt: skip
        rows |= under_way(some)
        for table, made in rows.items():
            db.execute(insert(table), [{**MADE, **one} for one in made])
        items = [
            {"dataset_id": name(n % 50), "interaction_id": number, "split": "train"} for n, number in enumerate(ids)
        ]
        db.execute(insert(DatasetItem), items)
        answers = [{"id": name(n), "interaction_id": number, "message": {}} for n, number in enumerate(ids)]
        db.execute(insert(TeacherAnswer), answers)
    with opened(database).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return database


def under_way(some: range) -> dict[type[Base], list[dict[str, Any]]]:
    """Rollouts, all but one of which have ended, and who served."""
    return {
        Rollout: [
            {
                "id": n + 1, "workload": f"w{n}", "version": "2", "reference": "teacher", "step": 0, "step_began": AT,
                "tally": Tally().to_json(), "status": "running" if n == 3 else "promoted", "spec": STEPS,
                "ended": None if n == 3 else AT,
            }
            for n in some
        ],
        RolloutDecision: [
            {"rollout_id": n + 1, "at": AT, "step": 0, "action": "begin", "reason": "", "evidence": {}} for n in some
        ],
        RolloutCall: [
            {
                "id": str(n), "arm": "student", "rollout_id": n % 50 + 1, "step": 0, "conversation": name(n)[32:],
                "at": AT, "failed": False, "latency_ms": 1.0, "opinion": 1,
            }
            for n in some
        ],
        Signal: [{"workload": f"w{n}", "name": "drift", "said": ""} for n in some],
        Promotion: [
            {
                "workload": f"w{n}", "number": 1, "version": "1", "by": "release", "noticed": "flow", "reason": "",
                "at": AT,
            }
            for n in some
        ],
    }  # fmt: skip


def lookups() -> dict[str, Callable[[], object]]:
    """What the code asks, a page or a batch of it."""

    def storing(rows: list[Any]) -> None:
        with session() as db:
            store(db, rows)

    def keeping() -> None:
        with session() as db:
            quarantine(db, [bad(n) for n in range(10)])

    def releasing() -> None:
        with session() as db:
            release(db, "jsonl", [name(n) for n in range(0, 20, 2)])

    def reading(query: Any) -> None:
        with session(write=False) as db:
            db.execute(query).all()

    return {
        "are interactions there": lambda: storing([row(n) for n in range(10)]),
        "is feedback there": lambda: storing([opinion(n) for n in range(10)]),
        "traffic in order of time": lambda: next(Window.latest("w3", 50).pages()),
        "which workloads": workloads,
        "into quarantine": keeping,
        "out of quarantine": releasing,
        "what goes of a workload": lambda: next(retention.interactions("w3", AT)),
        "what a teacher has answered": lambda: recall([name(n) for n in range(10)]),
        "candidates": lambda: candidates_of(name(3)),
        "scorecards": lambda: reading(select(Scorecard).where(Scorecard.dataset_id == name(3))),
        "what is under way": lambda: story("w3"),
        "a call of what is under way": lambda: observe(4, [Seen("new", 0, "student", "abc", AT, False, 1.0)]),
        "who serves": lambda: notice("w3", "1", "poll"),
        "what was told last": lambda: due("w3", [], SignalSpec()),
        "the newest dataset": lambda: reading(select(Dataset.id).where(Dataset.workload == "w3")),
    }


Place = tuple[str, tuple[str, ...]]  # a table and the columns of an index of it


@contextmanager
def statements(url: str) -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "DELETE", "UPDATE", "INSERT INTO quarantine")):
            sent.append((statement, values[0] if many else values))

    event.listen(opened(url), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(opened(url), "before_cursor_execute", note)


def plan(url: str, statement: str, values: Any) -> tuple[set[str], set[Place]]:
    """The tables that are read from end to end, and the indexes by which rows are found."""
    with opened(url).connect() as connection:
        if connection.dialect.name == "sqlite":
            steps = [step[3] for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            by = re.findall(r"(?:SEARCH|SCAN) (\w+) USING (?:COVERING )?INDEX (\w+)", "\n".join(steps))
            found = {
                (table, tuple(column[2] for column in connection.exec_driver_sql(f"PRAGMA index_info({index})")))
                for table, index in by
            }
            return {step.split()[1] for step in steps if step.startswith("SCAN ")}, found
        told = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", values).scalar()
        nodes = list(within(told[0]["Plan"]))
        scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        names = {node.get("Index Name") for node in nodes} | {
            index for node in nodes for index in node.get("Conflict Arbiter Indexes", ())
        }
        return scanned, {place for index, place in INDEXES.items() if index in names}


def within(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from within(inner)


INDEXES: dict[str, Place] = {
    str(index.name): (table.name, tuple(column.name for column in index.columns))
    for table in Base.metadata.sorted_tables
    for index in (*table.indexes, *(one for one in table.constraints if isinstance(one, UniqueConstraint)))
}


def test_every_query_finds_its_rows_by_an_index_and_every_index_is_used(filled: str) -> None:
    used: set[Place] = set()
    for what, ask in lookups().items():
        with statements(filled) as sent:
            ask()
        assert sent, what
        for statement, values in sent:
            scanned, found = plan(filled, statement, values)
            full = scanned & Base.metadata.tables.keys() - {"forgotten"}  # empty until someone is forgotten
            assert not full, (what, statement)
            used |= found
    assert set(INDEXES.values()) - used == set()
