"""The database: there, writable, whole, and at the newest migration, which it is not brought to here."""

import time
from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError

from infra.backup.copies import file_of
from infra.database.session import engine, hidden, revisions, translated
from infra.settings import settings
from tasks.doctor.finding import Level


def check() -> Iterator[tuple[Level, str, str]]:
    url = settings().database_url
    file = file_of(url)
    if file is not None and not file.exists():
        yield "ok", f"{file} is not there yet; the first command that stores something makes it", ""
        return
    opened = engine(url)
    try:
        with translated(url), opened.connect() as connection:
            began = time.monotonic()
            kind = opened.dialect.name
            version = connection.execute(text("SELECT sqlite_version()" if kind == "sqlite" else "SHOW server_version"))
            said = f"{hidden(url)}: {kind} {version.scalar()}"
            yield "ok", f"{said}, answers in {1000 * (time.monotonic() - began):.0f} ms", ""
            # Inside a transaction that is rolled back: whether it may be written to, and nothing is.
            try:
                connection.execute(text("CREATE TABLE flywheel_doctor (id INTEGER)"))
            except (InternalError, ProgrammingError, OperationalError) as problem:
                said = str(problem.orig).strip().splitlines()[0]
                grant = (
                    f"chmod u+w '{file}'" if file else "psql -c 'GRANT CREATE ON SCHEMA public TO ...', as its owner"
                )
                yield "wrong", f"{hidden(url)} cannot be written to ({said})", grant
            connection.rollback()
            now, newest = revisions(connection)
            connection.rollback()
            if now == newest:
                yield "ok", f"migrations: at {newest}, the newest", ""
            elif now is None:
                yield "ok", "migrations: none yet; the first command that stores something makes the tables", ""
            elif now > newest:
                yield (
                    "wrong",
                    f"migrations: at {now}, this version knows up to {newest}",
                    "pip install --upgrade flywheel",
                )
            else:
                yield "warning", f"migrations: at {now}, {newest} is the newest", "flywheel traffic"
            if kind == "sqlite":
                (whole,) = connection.execute(text("PRAGMA quick_check(1)")).one()
                if whole != "ok":
                    yield "wrong", f"{file} is damaged: {whole}", "FLYWHEEL_HOME=NEW flywheel restore BACKUP"
    finally:
        opened.dispose()
