"""Someone else's database, opened to be read: with a driver for its URL, in a transaction that cannot write.

| database                 | what holds the reading to reading                                               |
|--------------------------|---------------------------------------------------------------------------------|
| SQLite                   | `PRAGMA query_only`                                                             |
| PostgreSQL, CockroachDB, | `SET TRANSACTION READ ONLY`; PostgreSQL's server-side cursor takes but one      |
| MySQL, MariaDB, Oracle   | statement, so that none can end the transaction                                 |
| any other                | nothing is ever committed; give an account that may only read                   |

The URL is the spec's, which may not hold a password since specs are stored, or the setting FLYWHEEL_SQL_URL.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from infra.settings import SetupError, settings

READ_ONLY = ("postgresql", "cockroachdb", "mysql", "mariadb", "oracle")
SECRET = re.compile(r"pass|pwd|secret|token|credential|odbc_connect", re.IGNORECASE)
PACKAGES = {  # of a module that is missing, or of a dialect that SQLAlchemy does not bring
    "MySQLdb": "mysqlclient",
    "psycopg2": "psycopg2-binary",
    "bigquery": "sqlalchemy-bigquery",
    "clickhouse": "clickhouse-sqlalchemy",
    "clickhousedb": "clickhouse-connect",
    "cockroachdb": "sqlalchemy-cockroachdb",
    "databricks": "databricks-sqlalchemy",
    "duckdb": "duckdb-engine",
    "redshift": "sqlalchemy-redshift",
    "snowflake": "snowflake-sqlalchemy",
}


def address(given: str) -> URL:
    """The URL of a spec, or of the setting where it has none.

    Raises:
        SetupError: There is none, it is none, or one of a spec holds a password.
    """
    said = given or settings().sql_url.get_secret_value()
    if not said:
        raise SetupError("no database is named; set FLYWHEEL_SQL_URL to its SQLAlchemy URL")
    try:
        url = make_url(said)
    except (ArgumentError, ValueError):  # which says the URL, and with it what may be a password
        raise SetupError(
            f"{'--source.url' if given else 'FLYWHEEL_SQL_URL'} is no SQLAlchemy URL; give DIALECT://HOST/DATABASE, "
            "with a password that has special characters percent-encoded"
        ) from None
    if given and (url.password is not None or any(SECRET.search(key) for key in url.query)):
        raise SetupError(
            f"the url of {shown(url)} holds a password, and a source is stored as it is given; "
            "set FLYWHEEL_SQL_URL to it instead"
        )
    if url.drivername in ("postgres", "postgresql"):  # the driver that is installed for our own database
        url = url.set(drivername="postgresql+psycopg")
    return url


def shown(url: URL) -> str:
    """A URL for people: without its password, and without options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


@contextmanager
def reading(url: URL) -> Iterator[Connection]:
    """A connection in one transaction, undone at its end.

    Raises:
        SetupError: The driver is missing, the database cannot be reached, or says that it cannot do what it is asked.
    """
    opened = _engine(url)
    try:
        with opened.connect() as connection:
            if connection.dialect.name in READ_ONLY:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            yield connection
            connection.rollback()
    except SQLAlchemyError as problem:
        # `from None`: what the driver raises may name the password, and a traceback is kept in logs.
        raise SetupError(f"{shown(url)} says: {_message(problem, url)}") from None
    finally:
        opened.dispose()


def _engine(url: URL) -> Engine:
    dialect, _, driver = url.drivername.partition("+")
    file = url.database or ""
    if dialect == "sqlite" and file != ":memory:" and not file.startswith("file:") and not Path(file).is_file():
        raise SetupError(f"{shown(url)} does not exist; give sqlite:///FILE of a database that does")
    try:
        engine = create_engine(url, poolclass=NullPool)
    except NoSuchModuleError:
        raise SetupError(
            f"{dialect!r} is no database that SQLAlchemy knows here; install what brings it: "
            f"pip install {PACKAGES.get(dialect, f'sqlalchemy-{dialect}')}"
        ) from None
    except ImportError as problem:
        missing = problem.name or driver or dialect
        raise SetupError(
            f"the driver {missing!r} of {shown(url)} is not installed; pip install {PACKAGES.get(missing, missing)}, "
            f"or name another: {dialect}+DRIVER://..."
        ) from None
    if engine.dialect.is_async:
        raise SetupError(f"the driver of {shown(url)} is an asynchronous one; name another: {dialect}+DRIVER://...")
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON"))
    return engine


def _message(problem: SQLAlchemyError, url: URL) -> str:
    """What the database said, in one line without the password."""
    said: Any = getattr(problem, "orig", None) or problem
    line = " ".join(str(said).split()) or type(said).__name__
    for secret in [url.password, *(value for key, value in url.query.items() if SECRET.search(key))]:
        line = line.replace(str(secret), "***") if secret else line
    return line
