"""Partitions by month, as infra/database/partitions.sql makes them: all that holds of the table holds of them."""

import inspect
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

import infra.database
from infra.database.records import parse
from infra.database.session import database as opened
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Dataset, DatasetItem, Feedback, Interaction, now
from tasks.curate import curate
from tasks.dataset.cases import Window
from tasks.retention import prune
from tests.conftest import living_in, new_database
from tests.infra.database.test_explain import statements
from tests.tasks import test_curate, test_faults, test_forget, test_ingest, test_retention
from tests.tasks.test_curate import SPEC, put, record, thumb
from tests.tasks.test_faults import state
from tests.tasks.test_ingest import ROOT
from tests.tasks.test_retention import left

SCRIPT = Path(infra.database.__path__[0]) / "partitions.sql"
AUGUST, OCTOBER = datetime(2025, 8, 1, tzinfo=UTC), datetime(2025, 10, 1, tzinfo=UTC)
MONTH = 31 * 24 * 60  # minutes, in which `record` counts from 24 August 2025


def run(statement: str) -> list[Any]:
    """What PostgreSQL answers, as psql would have it."""
    with session() as db:
        result = db.connection().exec_driver_sql(statement)
        return [row[0] for row in result] if result.returns_rows else []


def divide(first_month: str = "2025-08-01") -> None:
    with session() as db:
        db.execute(text("SELECT set_config('flywheel.first_month', :month, true)"), {"month": first_month})
        driver: Any = db.connection().connection.driver_connection
        driver.execute(SCRIPT.read_text())


def partitions() -> dict[str, int]:
    """Those that have rows, and how many."""
    with session(write=False) as db:
        counted = db.execute(text("SELECT tableoid::regclass::text, count(*) FROM interaction GROUP BY 1"))
        return {name: rows for name, rows in counted}


def keys() -> int:
    return int(run("SELECT count(*) FROM interaction_key")[0])


@pytest.fixture
def plain(postgres: str, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database that the settings name, with the table as it is."""
    url = new_database(postgres)
    with living_in(tmp_path / "home", TEACHER="", DATABASE=url):
        yield url


@pytest.fixture
def partitioned(plain: str) -> str:
    """The same, with partitions from August 2025 on."""
    divide()
    return plain


@pytest.mark.parametrize(
    "test",
    [
        test_ingest.test_mixed_files_are_stored_in_both_databases,
        test_ingest.test_a_copy_under_another_name_adds_nothing,
        test_ingest.test_an_id_that_is_taken_is_kept_in_quarantine_not_dropped,
        test_faults.test_a_rotated_log_is_read_to_its_end_under_its_new_name,
        test_curate.test_rows_are_what_the_contract_says,
        test_retention.test_the_old_goes_with_its_feedback_and_the_new_stays,
        test_retention.test_what_a_dataset_was_made_of_stays_with_what_was_said_of_it,
        test_forget.test_a_client_is_gone_from_tables_and_files_and_does_not_come_back,
    ],
    ids=lambda test: test.__name__,
)
def test_what_holds_of_the_table_holds_of_partitions(
    partitioned: str, tmp_path: Path, test: Callable[..., None]
) -> None:
    given = {"database": partitioned, "tmp_path": tmp_path, "keeps_name": False}
    test(**{name: given[name] for name in inspect.signature(test).parameters})
    assert keys() == sum(partitions().values())


def test_ingests_at_once_lose_and_double_nothing(partitioned: str, tmp_path: Path) -> None:
    test_faults.test_ingests_of_overlapping_files_at_once_lose_and_double_nothing(partitioned, tmp_path, 2)


def test_a_record_is_there_once_whatever_month_two_writers_say_it_is_of(partitioned: str) -> None:
    """The second waits for the first, as at a unique index, and finds the record there."""
    rows = [parse({**record(1), "timestamp": at.timestamp()}, source="jsonl", at=now()) for at in (AUGUST, OCTOBER)]
    told: list[str] = []

    def second() -> None:
        with session() as db:
            told.extend(store(db, [rows[1]]))

    with session() as db:
        assert store(db, [rows[0]]) == ["stored"]
        beside = threading.Thread(target=second)
        beside.start()
        beside.join(0.3)
        assert beside.is_alive()
    beside.join()
    assert told == ["duplicate"] and partitions() == {"interaction_2025_08": 1} and keys() == 1


def test_what_was_there_is_kept_and_goes_on(plain: str) -> None:
    year = now().year + 2
    later = record(50, timestamp=datetime(year, 3, 4, tzinfo=UTC).timestamp())
    put(*(record(n, at=n % 3 * MONTH) for n in range(30)), later, thumb(3))
    before = state(ordered=False)
    divide("2025-09-01")
    assert state(ordered=False) == before and keys() == 31
    assert partitions() == {
        "interaction_before": 10, "interaction_2025_09": 10, "interaction_2025_10": 10, "interaction_other": 1,
    }  # fmt: skip
    assert run(f"SELECT interaction_months(12 * {year - now().year + 1})")
    assert partitions()[f"interaction_{year}_03"] == 1 and "interaction_other" not in partitions()
    put(record(60, at=MONTH))
    with session(write=False) as db:
        assert db.scalar(select(func.max(Interaction.id))) == 32
    assert run("SELECT interaction_months()") == []


def test_without_a_first_month_nothing_is_copied(plain: str) -> None:
    put(*(record(n, at=n % 3 * MONTH) for n in range(30)))
    divide("")
    assert partitions() == {"interaction_before": 30}
    month = (now().replace(day=1) + timedelta(days=32)).replace(day=5)
    put(record(40, timestamp=month.timestamp()))
    assert partitions() == {"interaction_before": 30, f"interaction_{month:%Y_%m}": 1}


def test_the_commands_that_it_gives_work_as_they_stand(plain: str) -> None:
    put(*(record(n, at=n % 3 * MONTH) for n in range(30)))
    commands = [line[2:].strip() for line in SCRIPT.read_text().splitlines() if line.startswith("--     psql")]
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "FLYWHEEL_DATABASE": plain}
    environment["PGOPTIONS"] = "-c flywheel.first_month=2025-09-01"
    for command in commands:
        told = re.sub(r"  +\w.*", "", command)  # what stands beside it
        done = subprocess.run(told, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), told
    assert len(commands) == 3 and partitions() == {}


def test_columns_and_indexes_are_added_to_partitions_as_well(partitioned: str) -> None:
    put(record(1))
    run("ALTER TABLE interaction ADD COLUMN mood varchar DEFAULT 'calm' NOT NULL")
    run("CREATE INDEX ix_interaction_mood ON interaction (mood)")
    assert run("SELECT interaction_months(12)")
    put(record(2, timestamp=(now() + timedelta(days=300)).timestamp()), record(3))
    assert run("SELECT mood FROM interaction") == ["calm"] * 3
    assert run("SELECT interaction_drop('2025-09-01')") and len(left(Interaction.id)) == 1


def looked_through(url: str, statement: str, values: Any) -> set[str]:
    """The partitions that a statement looks into, by PostgreSQL's word."""
    with opened(url).connect() as connection:
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values))
    return set(re.findall(r" on (interaction_\w+)", plan)) & set(run("SELECT name::text FROM interaction_partition"))


def test_curation_and_ingest_look_into_the_months_they_are_about(partitioned: str) -> None:
    put(*(record(n, at=n % 6 * MONTH) for n in range(60)))
    with statements(partitioned) as sent:
        list(Window.latest("w", 15).pages())
        put(record(70, at=2 * MONTH), record(71, at=2 * MONTH))
    page = next(each for each in sent if "interaction.request" in each[0])
    assert looked_through(partitioned, *page) == {"interaction_2025_12", "interaction_2026_01"}
    known = next(each for each in sent if "interaction.digest" in each[0])
    assert looked_through(partitioned, *known) == {"interaction_2025_10"}


def fill() -> None:
    """Three months of traffic, of the first a dataset, and some ids that another source has too."""
    put(*(record(n) for n in range(40)), thumb(3), thumb(4, -1))
    curate("w", SPEC)
    put(*(record(n, at=n % 3 * MONTH) for n in range(40, 100)), thumb(999))
    put(*(thumb(n, timestamp=1_775_000_000) for n in range(40, 60)))  # long after what they are about
    put({**thumb(1, -1, target="episode"), "record_id": "c45"})
    with session() as db:
        store(db, [parse(record(n, at=2 * MONTH), source="gateway", at=now()) for n in range(42, 50)])


def test_months_that_are_dropped_leave_what_prune_leaves(postgres: str, tmp_path: Path) -> None:
    limit = date(2025, 10, 1)
    found = []
    for name in ("plain", "divided"):
        with living_in(tmp_path / name, TEACHER="", DATABASE=new_database(postgres)):
            if name == "divided":
                divide()
            fill()
            if name == "divided":
                assert run(f"SELECT interaction_drop('{limit}')") == [
                    "interaction_before", "interaction_2025_08", "interaction_2025_09",
                ]  # fmt: skip
                assert partitions()["interaction_other"] == 40 and keys() == sum(partitions().values())
            prune(limit)
            found.append((state(Interaction, Feedback, ordered=False), left(DatasetItem.interaction_id)))
            put(record(70))  # what was dropped is free to come again
            assert "r70" in left(Interaction.external_id)
    assert found[0] == found[1] and found[0][0]["interaction"][0] == 40 + 20 + 8


def test_months_to_come_are_not_dropped(partitioned: str) -> None:
    with pytest.raises(DBAPIError, match="would drop months to come"):
        run(f"SELECT interaction_drop('{now().date() + timedelta(days=2)}')")


def test_a_dataset_and_its_interactions_hold_each_other(partitioned: str) -> None:
    put(record(1))
    (there,) = left(Interaction.id)
    with session() as db:
        made = {"path": "", "report": {}, "spec": {}, "created": now()}
        db.execute(insert(Dataset), [{"id": "d", "workload": "w", **made}])
    with pytest.raises(IntegrityError, match="has been deleted"), session() as db:
        items = [{"dataset_id": "d", "interaction_id": there + n, "split": "train"} for n in range(2)]
        db.execute(insert(DatasetItem), items)
    with session() as db:
        db.execute(insert(DatasetItem), [{"dataset_id": "d", "interaction_id": there, "split": "train"}])
    with pytest.raises(IntegrityError, match="cannot be deleted"), session() as db:
        db.execute(delete(Interaction))
    assert left(Interaction.id) == [there] == left(DatasetItem.interaction_id)
