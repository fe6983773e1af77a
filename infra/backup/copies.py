"""Databases as one SQLite file each, whichever they are: consistent copies of what others write to meanwhile.

PostgreSQL is copied row by row, in one transaction that sees one moment (REPEATABLE READ), into SQLite's tables of the
same revision, and back the same way. `pg_dump` would be faster; but its dump is read by a `pg_restore` of the same
major version or a later one and by no other database, and a container with Flywheel has neither program. So a backup
of either database can be restored into either.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, func, insert, inspect, make_url, select, text

from infra.database.session import VERSION_TABLE, database, engine, migrate, translated
from infra.database.tables import Base
from infra.settings import SetupError

ROWS = 500


def file_of(url: str) -> Path | None:
    """The file of an SQLite URL; None for another database."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def save(url: str, target: Path) -> None:
    """Copy our database, as it is at one moment, to a new SQLite file."""
    with translated(url):
        opened = database(url)
        if (file := file_of(url)) is not None:
            copy(file, target)
            return
        made = engine(f"sqlite:///{target}")
        try:
            migrate(made)
            _copy_rows(opened, made)
        finally:
            made.dispose()
    one_file(target)


def load(file: Path, url: str) -> None:
    """Copy such a file into an empty PostgreSQL database, all or nothing."""
    saved = engine(f"sqlite:///{file}")
    with translated(url):
        target = engine(url)
        try:
            migrate(saved)
            migrate(target)
            _copy_rows(saved, target)
        finally:
            saved.dispose()
            target.dispose()


def require_empty(url: str) -> None:
    """Raise SetupError where our tables hold anything."""
    with translated(url):
        opened = engine(url)
        try:
            with opened.connect() as connection:
                there = set(inspect(connection).get_table_names())
                for table in Base.metadata.sorted_tables:
                    if table.name in there and connection.execute(select(1).select_from(table).limit(1)).first():
                        shown = make_url(url).render_as_string()
                        raise SetupError(
                            f"database {shown} has rows in {table.name!r}; set FLYWHEEL_DATABASE to an empty one"
                        )
        finally:
            opened.dispose()


def _copy_rows(source: Engine, target: Engine) -> None:
    """All rows of all tables, parents first; ids go on behind the largest."""
    isolation = {} if source.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with source.connect().execution_options(**isolation, read_only=True) as reader, target.begin() as writer:  # type: ignore[arg-type]
        for table in Base.metadata.sorted_tables:
            found = reader.execution_options(yield_per=ROWS).execute(select(table))
            for some in found.mappings().partitions(ROWS):
                writer.execute(insert(table), [dict(row) for row in some])
            key = table.autoincrement_column
            if target.dialect.name == "postgresql" and key is not None:
                last = writer.scalar(select(func.max(key)))
                if last is not None:
                    sequence = func.pg_get_serial_sequence(table.name, key.name)
                    writer.execute(select(func.setval(sequence, last)))


def revision(file: Path) -> str:
    """The migration that a saved database is at."""
    with closing(sqlite3.connect(file)) as connection:
        return str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}").text).fetchone()[0])


def copy(source: Path, target: Path) -> None:
    """A SQLite file as it is at one moment, by SQLite's own backup; who writes to it meanwhile does not wait.

    All pages go in one step: WAL lets writers go on beside it, and nothing of theirs is in the copy.

    Raises:
        SetupError: The copy does not hold together, so neither does the file.
    """
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, timeout=60)) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)
    one_file(target)


def one_file(file: Path) -> None:
    """Take a log's pages into the file, and see that it holds together."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise SetupError(f"the copy of {file.name} is damaged ({said}); the database itself may be: `flywheel doctor`")


def move(file: Path, before: Path, after: Path, columns: Iterable[tuple[str, str]] | None = None) -> int:
    """Let what begins with one folder's path, or its file: URI, begin with another's; returns how many values changed.

    Args:
        columns: (table, column) of the values; None for every text column, which is for MLflow's tables.
    """
    changed = 0
    ways = [(f"{before}/", f"{after}/"), (f"{before.as_uri()}/", f"{after.as_uri()}/")]
    ways += [(f'{{"uri": "{old}', f'{{"uri": "{new}') for old, new in ways]  # the source of a dataset, in MLflow
    with closing(sqlite3.connect(file)) as connection:
        for table, column in texts(connection) if columns is None else columns:
            for old, new in ways:
                done = connection.execute(
                    f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?',
                    (new, len(old) + 1, len(old), old),
                )
                changed += done.rowcount
        connection.commit()
    return changed


def texts(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """(table, column) of every column of text."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, name)
        for table in tables
        for _, name, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall()
        if "CHAR" in kind.upper() or "TEXT" in kind.upper()
    ]


def paths() -> list[tuple[str, str]]:
    """Where our own tables keep paths."""
    return [(table.name, "path") for table in Base.metadata.sorted_tables if "path" in table.columns]
