"""Queries that run at every batch or page find their rows by an index, and there is no index that none of them uses."""

import re
from typing import Any

import pytest
from sqlalchemy import Select, delete, inspect, select, text
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.records import parse
from infra.database.session import database as opened
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Base, Dataset, DatasetItem, Feedback, Interaction, Quarantine, now
from tasks.cases import Window

TRAFFIC = ("interaction", "feedback", "quarantine", "dataset_item")


def plan(db: Session, query: Any) -> str:
    """How the database would run a query, with its values in it."""
    said = query.compile(db.get_bind(), compile_kwargs={"literal_binds": True})
    if db.get_bind().dialect.name == "sqlite":
        return "\n".join(str(row[-1]) for row in db.execute(text(f"EXPLAIN QUERY PLAN {_plain(said)}")))
    db.execute(text("SET LOCAL enable_seqscan = off"))  # a table of a page would be scanned whatever its indexes
    return "\n".join(str(row[0]) for row in db.execute(text(f"EXPLAIN {_plain(said)}")))


def _plain(said: Any) -> str:
    return str(said).replace(":", r"\:").replace("%%", "%")


def queries(db: Session) -> dict[str, Any]:
    ids = [f"r{n}" for n in range(50)]
    window = Window.latest("w", 100)
    return {
        "which rows of a batch are there": select(Interaction.digest).where(
            Interaction.source == "jsonl", among(db, Interaction.external_id, ids)
        ),
        "which feedback of a batch is there": select(Feedback.digest).where(
            Feedback.source == "jsonl", among(db, Feedback.external_id, ids)
        ),
        "what was said of a page": select(Feedback.value).where(among(db, Feedback.record_id, ids)),
        "a workload in order of time": window._ordered(db, select(Interaction.id)),
        "what of a batch lies in quarantine": delete(Quarantine).where(
            Quarantine.source == "jsonl", among(db, Quarantine.digest, ids)
        ),
        "which datasets hold an interaction": select(DatasetItem.dataset_id).where(
            among(db, DatasetItem.interaction_id, [1, 2, 3])
        ),
        "what a dataset holds": select(DatasetItem.split).where(DatasetItem.dataset_id == "x"),
        "a row by its number": select(Interaction.workload).where(Interaction.id == 3),
        "an opinion by its number": select(Feedback.kind).where(Feedback.id == 3),
        "a refusal by its number": select(Quarantine.reason).where(Quarantine.id == 3),
    }


@pytest.fixture
def traffic(database: str) -> str:
    records: list[dict[str, Any]] = []
    for n in range(2000):
        request = {"messages": [{"role": "user", "content": f"where is {n}"}]}
        answer = {"choices": [{"message": {"role": "assistant", "content": "here"}}]}
        records.append({"id": f"r{n}", "timestamp": 1_756_000_000 + n, "workload_id": f"w{n % 9 or ''}"})
        records[-1] |= {"request": request, "response": answer}
        records.append({"record_id": f"r{n}", "kind": "thumb", "value": 1})
    with session() as db:
        store(db, [parse(record, source="jsonl", at=now()) for record in records])
        for name in ("a", "b", "c"):
            db.add(Dataset(id=name, workload="w", path="", report={}, spec={}))
            db.flush()
            numbers = db.scalars(select(Interaction.id)).all()
            db.add_all(DatasetItem(dataset_id=name, interaction_id=number, split="train") for number in numbers)
    with opened(database).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return database


def test_each_query_uses_an_index_and_each_index_is_used(traffic: str) -> None:
    used: set[str] = set()
    with session() as db:
        for name, query in queries(db).items():
            told = plan(db, query)
            tables = [table for table in TRAFFIC if re.search(rf"(?:SCAN|Seq Scan on) {table}\b(?! USING)", told)]
            assert not tables, f"{name} scans {tables}:\n{told}"
            used.update(re.findall(r"\b(?:ix|uq|pk)_\w+", told))
            if re.search(r"USING (?:COVERING )?INDEX sqlite_autoindex_(\w+?)_\d", told):
                used.update(f"auto:{match}" for match in re.findall(r"sqlite_autoindex_(\w+?)_\d", told))
        there = inspect(db.connection())
        for table in TRAFFIC:
            known = {index["name"] for index in there.get_indexes(table)}
            unused = {name for name in known if name not in used and f"auto:{table}" not in used}
            assert not unused, f"no query uses {unused} of {table}; used are {used}"


def test_every_table_of_traffic_is_looked_at() -> None:
    assert set(TRAFFIC) <= set(Base.metadata.tables)


def test_a_page_is_read_without_sorting_all(traffic: str) -> None:
    with session() as db:
        query: Select[Any] = Window.latest("w1", 100)._ordered(db, select(Interaction.id))
        told = plan(db, query)
    assert "ix_interaction_workload_at" in told
    assert "ORDER BY" not in told or "FOR RIGHT PART OF ORDER BY" in told or "FOR LAST" in told
