"""Sessions on the one database, SQLite or PostgreSQL, which is migrated when a process first opens it.

SQLite takes its write lock when a session begins, not at its first write: a session that reads and then writes would
otherwise fail at once, whatever the timeout, if another process wrote in between. Sessions that only read do not wait
for writers (WAL), nor writers for them.
"""

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from infra.database.jsontext import from_column, to_column
from infra.settings import SetupError, settings

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "flywheel_version"
JSON_COLUMNS = {"json_serializer": to_column, "json_deserializer": from_column}
BUSY_SECONDS = 60
GONE = ("08", "40", "57P")  # SQLSTATE: no connection, undone for another's sake (deadlock), shut down by its operator
MIGRATION_LOCK = 7_305_291_846  # any number that no other program takes as an advisory lock


class Interrupted(SetupError):
    """The database went away in the middle, or ended a deadlock; what was begun is undone, and may succeed again."""


@contextmanager
def session(write: bool = True) -> Iterator[Session]:
    """A session that commits on exit and rolls back on an error.

    Args:
        write: False for a session that only reads, which SQLite then lets run beside a writer.

    Raises:
        SetupError: The database cannot be reached, is at a migration that this version does not know, or is full.
        Interrupted: This process has reached it before; trying again may help.
    """
    url = settings().database_url
    with translated(url):
        opened = database(url)
        with Session(opened.execution_options(read_only=not write), expire_on_commit=False) as db, db.begin():
            yield db


_engines: dict[str, Engine] = {}


def database(url: str) -> Engine:
    """The engine of a URL, migrated to the newest revision; once per process."""
    if url not in _engines:
        opened = engine(url)
        migrate(opened)
        _engines[url] = opened
    return _engines[url]


def close() -> None:
    """Close every connection of this process; the next session opens the database anew."""
    while _engines:
        _engines.popitem()[1].dispose()


def empty_log() -> None:
    """Write SQLite's log into its file and empty it: the log holds rows that were deleted; nothing on PostgreSQL."""
    opened = database(settings().database_url)
    if opened.dialect.name == "sqlite":
        connection = opened.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()


def to_disk() -> None:
    """See to it that what was committed is on the disk, where a power cut leaves it.

    PostgreSQL has seen to that at the commit, unless it is configured not to. SQLite in WAL mode with
    `synchronous=NORMAL` has written its log, and what it has moved from there into its file it has synced before.
    """
    url = settings().database_url
    file = make_url(url).database
    if not url.startswith("sqlite") or not file or file == ":memory:":
        return
    log = Path(f"{file}-wal")
    for path, flags in ((log, os.O_RDWR), (log.parent, os.O_RDONLY)):
        try:
            opened = os.open(path, flags)  # SQLite has its locks on other files: closing this one gives up none
        except FileNotFoundError:  # its last connection was closed, which has moved all of the log
            continue
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL; opens nothing yet but makes SQLite's folder.

    Raises:
        SetupError: The URL is none, or of another database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as problem:
        shown = url if "@" not in url else f"...@{url.rpartition('@')[2]}"  # a password may stand before it
        raise SetupError(
            f"FLYWHEEL_DATABASE {shown!r} is no SQLAlchemy URL; give sqlite:///FILE or postgresql://..."
        ) from problem
    kind = parsed.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, **JSON_COLUMNS)
    if kind != "sqlite":
        raise SetupError(
            f"FLYWHEEL_DATABASE names {kind!r}; SQLite and PostgreSQL are supported: sqlite:///FILE or postgresql://..."
        )
    if parsed.database and parsed.database != ":memory:":
        _make_folder(Path(parsed.database).parent)
    made = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, **JSON_COLUMNS)
    event.listen(made, "connect", _configure)
    event.listen(made, "begin", _begin)
    return made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            raise
        raise SetupError(
            f"folder {str(folder)!r} cannot be made ({problem.strerror}); set FLYWHEEL_HOME to one that can"
        ) from problem


def _configure(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Python's driver would begin and commit on its own, around DDL wrongly
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which is kept in the file; two that open a new file at once wait for each other.

    The switch does not heed the driver's timeout: SQLite answers "locked" at once.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def migrate(opened: Engine) -> None:
    """Bring the database to the newest migration; two processes that try it at once wait for each other.

    Raises:
        SetupError: It is at a migration that this version of Flywheel does not know.
    """
    from alembic import command
    from alembic.script import ScriptDirectory

    configuration = _configuration()
    scripts = ScriptDirectory.from_config(configuration)
    known = [script.revision for script in scripts.walk_revisions()]
    with opened.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        current = _revision(connection)
        if current == known[0]:
            return
        if current is not None and current not in known:
            raise SetupError(
                f"database {opened.url.render_as_string()} is at migration {current!r}, this version of Flywheel knows "
                f"up to {known[0]!r}; install the newer version or set FLYWHEEL_DATABASE to another database"
            )
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")


def revisions(connection: Connection) -> tuple[str | None, str]:
    """The migration that a database is at, and the newest that this version of Flywheel knows."""
    from alembic.script import ScriptDirectory

    return _revision(connection), str(ScriptDirectory.from_config(_configuration()).get_current_head())


def _configuration() -> "Config":
    from alembic.config import Config

    return Config(Path(__file__).parent.parent / "alembic.ini")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def hidden(url: str) -> str:
    """The URL as it may be shown: without its password."""
    return make_url(url).render_as_string(hide_password=True)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """What a person can mend, said in one line instead of the driver's exception."""
    try:
        yield
    except OperationalError as problem:
        said = str(problem.orig).strip().splitlines()[0] if str(problem.orig).strip() else "no answer"
        if "disk is full" in said or "No space left" in said or _is_full(url):
            raise SetupError(
                f"disk full: {hidden(url)} takes no more ({said}), and what was begun is undone; "
                "free some space or set FLYWHEEL_HOME to another disk"
            ) from problem
        if "locked" in said:
            raise SetupError(
                f"database {hidden(url)} was kept locked by another process for over {BUSY_SECONDS} s; "
                "try again, or set FLYWHEEL_DATABASE to PostgreSQL"
            ) from problem
        if not url.startswith("sqlite") and url in _engines:
            state = getattr(problem.orig, "sqlstate", None) or ""
            if problem.statement is not None and state and not state.startswith(GONE):
                raise
            raise Interrupted(
                f"database {hidden(url)} broke off ({said}), and what was begun is undone; "
                "check that it is running and try again"
            ) from problem
        raise SetupError(
            f"database {hidden(url)} cannot be opened ({said}); check FLYWHEEL_DATABASE and that it is running"
        ) from problem


def _is_full(url: str) -> bool:
    """Whether SQLite's disk has no room, which it reports in several ways (its WAL and its index cannot grow)."""
    file = make_url(url).database
    if not url.startswith("sqlite") or not file:
        return False
    try:
        return shutil.disk_usage(Path(file).parent).free < 1 << 18
    except OSError as problem:
        return problem.errno == errno.ENOSPC
