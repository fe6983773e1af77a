"""What is older than the date goes, in batches; what a dataset was made of stays, and nothing comes back."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import tasks.retention
from infra.database.session import session
from infra.database.tables import (
    Cursor,
    DatasetItem,
    Feedback,
    Interaction,
    Quarantine,
    Rollout,
    RolloutCall,
    now,
)
from infra.settings import SetupError
from tasks.curate import curate
from tasks.ingest import ingest
from tasks.retention import prune
from tasks.sources.jsonl import JSONL
from tests.tasks.test_curate import SPEC, put, record, thumb

NEXT_DAY = date(2025, 8, 25)  # `record` takes minutes since 24 August 2025, 01:46 UTC
DAY = 24 * 60


def left(column: Any) -> list[Any]:
    with session(write=False) as db:
        return sorted(db.scalars(select(column)))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.retention, "BATCH", 7)


def test_the_old_goes_with_its_feedback_and_the_new_stays(database: str) -> None:
    midnight = int(datetime(2025, 8, 25, tzinfo=UTC).timestamp())
    put(*(record(n, at=n % 3) for n in range(30)), *(record(n, at=DAY) for n in range(30, 34)))
    put(record(40, timestamp=midnight), record(41, timestamp=midnight - 1), record(42, workload_id="v"))
    put(thumb(1), {**thumb(2, -1), "timestamp": midnight + 99}, thumb(31), thumb(99), thumb(98, timestamp=midnight))
    put({**thumb(1, -1, target="episode"), "record_id": "c33"}, {**thumb(2, -1, target="episode"), "record_id": "c7"})
    dry = prune(NEXT_DAY, dry_run=True)
    assert len(left(Interaction.id)) == 37
    done = prune(NEXT_DAY)
    assert done["interactions"] == dry["interactions"] == {"v": 1, "w": 31}
    assert (
        (done["feedback"], done["orphans"], done["kept"])
        == (2, 2, [])
        == tuple(dry[key] for key in ("feedback", "orphans", "kept"))
    )
    assert left(Interaction.external_id) == ["r30", "r31", "r32", "r33", "r40"]
    assert left(Feedback.record_id) == ["c33", "r31", "r98"]
    assert prune(NEXT_DAY)["interactions"] == {}


def shadowed(*records: str) -> None:
    """What a student said in shadow to these calls."""
    with session() as db:
        rollout = Rollout(
            workload="w",
            version="1",
            reference="teacher",
            step=0,
            step_began=now(),
            tally={},
            status="running",
            spec={},
        )
        db.add(rollout)
        db.flush()
        for name in records:
            db.add(
                RolloutCall(
                    id=name, arm="student", rollout_id=rollout.id, step=0, conversation=name, at=now(), failed=False,
                    latency_ms=1.0, answer={"message": {"role": "assistant", "content": f"to {name}"}},
                )
            )  # fmt: skip


def test_what_a_student_said_in_shadow_goes_with_its_call(database: str) -> None:
    put(record(1), record(2, at=DAY))
    shadowed("r1", "r2")
    prune(NEXT_DAY)
    assert left(RolloutCall.id) == ["r2"]


def test_only_one_workload_is_pruned_if_it_is_named(database: str) -> None:
    put(record(1), record(2, workload_id="v"), thumb(1), thumb(2), thumb(99))
    assert prune(NEXT_DAY, "v")["interactions"] == {"v": 1}
    assert left(Interaction.external_id) == ["r1"] and left(Feedback.record_id) == ["r1", "r99"]


def test_what_a_dataset_was_made_of_stays_with_what_was_said_of_it(database: str) -> None:
    put(*(record(n) for n in range(40)), thumb(3), thumb(4, -1), thumb(39, -1))
    made = curate("w", SPEC)
    assert made["disliked"] == 1, "r4; r39 is of the holdout's time"
    put(*(record(n, at=5) for n in range(40, 50)), thumb(45))
    items = left(DatasetItem.interaction_id)
    done = prune(NEXT_DAY)
    assert done["interactions"] == {"w": 11} and done["feedback"] == 2
    assert done["kept"] == [{"dataset_id": made["dataset_id"], "workload": "w", "interactions": 39}]
    assert left(DatasetItem.interaction_id) == items == left(Interaction.id)
    assert left(Feedback.record_id) == ["r3", "r4"]


def test_an_id_that_another_source_has_too_keeps_its_feedback(database: str) -> None:
    from infra.database.records import parse
    from infra.database.store import store

    put(record(1), thumb(1))
    with session() as db:
        store(db, [parse(record(1, at=DAY), source="gateway", at=datetime.now(UTC))])
    assert prune(NEXT_DAY)["interactions"] == {"w": 1}
    assert left(Interaction.source) == ["gateway"] and left(Feedback.record_id) == ["r1"]


def test_a_file_that_was_read_does_not_bring_it_back(database: str, tmp_path: Path) -> None:
    lines = [json.dumps(record(n)) for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "not json"]) + "\n")
    source = JSONL((str(tmp_path / "a.jsonl"),))
    ingest(source)
    assert prune(NEXT_DAY)["read_again"] == 1 and left(Interaction.id) == []
    ingest(source)
    assert len(left(Interaction.id)) == 3, "a file with something in quarantine is read again"
    with session() as db:  # as if it had been read years ago
        long_ago = datetime(2025, 8, 24, tzinfo=UTC)
        db.execute(update(Quarantine).values(created=long_ago))
        db.execute(update(Cursor).values(moved=long_ago))
    done = prune(NEXT_DAY)
    assert (done["quarantine"], done["read_again"]) == (1, 0) and left(Quarantine.id) == []
    assert ingest(source)["interactions"] == 0 and left(Interaction.id) == []


def test_a_day_to_come_and_an_unknown_workload_are_one_line(home: Path) -> None:
    with pytest.raises(SetupError, match="would delete everything"):
        prune((datetime.now(UTC) + timedelta(days=2)).date())
    with pytest.raises(SetupError, match="'x' has no traffic"):
        prune(NEXT_DAY, "x")
