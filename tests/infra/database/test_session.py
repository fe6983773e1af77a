"""The database as people meet it: new, shared, busy, old, newer, unreachable and full."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from infra.database.records import parse
from infra.database.session import VERSION_TABLE, engine, session
from infra.database.session import database as opened
from infra.database.store import store
from infra.database.tables import Base, Cursor, Interaction, now
from infra.settings import SetupError, settings
from tests.conftest import living_in

ROOT = Path(__file__).parent.parent.parent.parent


def cursor(source: str) -> Cursor:
    return Cursor(source=source, position={"offset": 1})


def test_the_migrations_make_exactly_the_tables(database: str) -> None:
    with session():
        pass
    with opened(database).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_session_commits_on_exit_and_an_error_undoes_it(database: str) -> None:
    with session() as db:
        db.add(cursor("kept"))
    with pytest.raises(ZeroDivisionError), session() as db:
        db.add(cursor("undone"))
        db.flush()
        raise ZeroDivisionError
    with session(write=False) as db:
        assert list(db.scalars(select(Cursor.source))) == ["kept"]


def test_times_come_back_in_utc(database: str) -> None:
    with session() as db:
        db.add(cursor("x"))
    with session(write=False) as db:
        moved = db.scalars(select(Cursor)).one().moved
    assert moved.tzinfo is not None and moved.utcoffset().total_seconds() == 0


def test_processes_that_open_a_new_database_at_once_all_succeed(database: str) -> None:
    code = (
        "import sys\nfrom infra.database.session import session\nfrom infra.database.tables import Cursor\n"
        "with session() as db: db.add(Cursor(source=sys.argv[1], position={}))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE)
        for n in range(4)
    ]
    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 4
    with session(write=False) as db:
        assert db.scalar(select(func.count()).select_from(Cursor)) == 4


def test_new_sqlite_files_that_are_opened_at_the_same_instant_are_never_locked(tmp_path: Path) -> None:
    """The window is narrow, hence many files: without waiting, one in thirty failed."""
    together, problems = threading.Barrier(4), []

    def opens() -> None:
        for number in range(100):
            made = engine(f"sqlite:///{tmp_path / str(number)}.db")
            together.wait()
            try:
                with made.begin() as connection:
                    connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
            except OperationalError as problem:
                problems.append(problem)
            made.dispose()

    threads = [threading.Thread(target=opens) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_session_that_reads_and_then_writes_waits_for_another_writer(database: str) -> None:
    """SQLite would fail at once, whatever the timeout, had the lock been taken at the first write."""
    with session() as db:
        db.add(cursor("first"))

    def add(n: int) -> None:
        for round_ in range(10):
            with session() as db:
                db.scalars(select(Cursor)).all()
                db.add(cursor(f"{n}:{round_}"))

    failures: list[BaseException] = []
    threading.excepthook, before = lambda problem: failures.append(problem.exc_value), threading.excepthook
    try:
        threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert failures == []
    with session(write=False) as db:
        assert db.scalar(select(func.count()).select_from(Cursor)) == 41


def test_a_reader_does_not_wait_for_a_writer(database: str) -> None:
    with session() as writer:
        writer.add(cursor("unfinished"))
        writer.flush()
        with session(write=False) as reader:
            assert reader.scalars(select(Cursor)).all() == []


def test_sqlite_keeps_foreign_keys_and_a_write_ahead_log(home: Path) -> None:
    with session() as db:
        assert db.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert db.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_an_older_database_is_migrated_with_what_it_holds(database: str) -> None:
    from alembic import command

    from infra.database import session as of_session

    message = {"workload_id": "w", "id": "1", "request": {"messages": [{"role": "user", "content": "hi"}]}}
    row = parse({**message, "response": {"error": "x"}}, source="jsonl", at=now())
    with session() as db:
        store(db, [row])
    configuration = of_session._configuration()
    with opened(database).begin() as connection:
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0001")
    of_session.close()
    with session() as db:
        assert store(db, [row]) == ["duplicate"]
        assert db.scalars(select(Interaction)).one().request == message["request"]


def test_a_database_at_a_newer_migration_is_refused_with_both_revisions(database: str) -> None:
    with session() as db:
        db.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    from infra.database.session import close

    close()
    with pytest.raises(SetupError, match=r"'9999'.*'\d{4}'.*FLYWHEEL_DATABASE"), session():
        pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://someone:secret@127.0.0.1:9/flywheel", r"postgresql://someone:\*\*\*@127.0.0.1:9/flywheel"),
        ("sqlite:////proc/nowhere/x.db", "/proc/nowhere"),
        ("mysql://localhost/x", "'mysql'"),
        ("not a url", "'not a url'"),
        ("postgresql//someone:secret@db/flywheel", "'...@db/flywheel'"),
    ],
)
def test_a_database_that_cannot_be_had_is_named_without_its_password(tmp_path: Path, url: str, said: str) -> None:
    with living_in(tmp_path, DATABASE=url), pytest.raises(SetupError, match=said) as caught, session():
        pass
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(small_disk: Path) -> None:
    with living_in(small_disk / "home"):
        with session() as db:
            db.add(cursor("before"))
        for n in range(50):
            try:
                with session() as db:
                    db.add(Cursor(source=f"big {n}", position={"text": "x" * 150_000}))
                    db.add(Cursor(source=f"with {n}", position={}))
            except SetupError as problem:
                assert "disk full" in str(problem) and "FLYWHEEL_HOME" in str(problem) and "\n" not in str(problem)
                break
        else:
            pytest.fail("the disk took it all")
        with session(write=False) as db:
            kept = set(db.scalars(select(Cursor.source)))
        assert kept == {"before"} | {f"{what} {m}" for m in range(n) for what in ("big", "with")}


def test_a_disk_that_is_full_from_the_start_is_one_line(small_disk: Path) -> None:
    (small_disk / "junk").write_bytes(b"x" * (1 << 20))
    with living_in(small_disk), pytest.raises((SetupError, OSError), match=r"disk full|No space left"), session():
        pass


def test_settings_name_a_file_in_the_home(home: Path) -> None:
    with session():
        pass
    assert settings().database_url == f"sqlite:///{home}/flywheel.db" and (home / "flywheel.db").exists()
