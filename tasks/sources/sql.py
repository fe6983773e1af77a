"""Logs and feedback that lie in a database: any SQLAlchemy URL, a query, and which of our fields is which column.

    flywheel ingest sql "SELECT id, question, reply, stars FROM chat_log"
        --source.columns '{"prompt": "question", "answer": "reply", "rating": "stars"}'

A field that is not in `columns` is read from the column of its own name, if there is one; `""` leaves it out. What the
fields are and hold is in `tasks/sources/columns.py`. Rows stream: a server-side cursor gives `PAGE` of them at a time.

Without `increasing` the whole query is read each time, which adds nothing that is there. With it, rows are read in the
order of that column and from its last value on, that value included: rows that share it (a second has many) may have
come later, and those that are there already are counted once. So are rows that have no value, each time. What it does
not see is a row that came, or changed, behind the last value: of a serial number, what another transaction had not
yet committed, or a rating that was given later. Let it be the time of the last change, or read without it now and
then.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from uuid import UUID

import pydantic
from sqlalchemy import Connection, CursorResult, bindparam, column, literal_column, or_, select, text

from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed, parse
from infra.settings import SetupError
from tasks.sources.columns import FIELDS, Field, lacking, plain, records
from tasks.sources.database import address, reading, shown
from tasks.sources.part import Entry

PAGE = 100
READERS: dict[str, Callable[[str], Any]] = {
    "Decimal": Decimal, "datetime": datetime.fromisoformat, "date": date.fromisoformat, "UUID": UUID,
}  # fmt: skip


@dataclass(frozen=True)
class SQL:
    """The rows of a query.

    Attributes:
        query: One statement that reads.
        url: Of the database, without a password; empty for the setting FLYWHEEL_SQL_URL.
        columns: The column of each field that has another name there; empty for a field that is not to be read.
        increasing: A column of the query that only grows (a number, a time, text); empty to read the whole each time.
        workload: The workload of calls that name none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    query: Annotated[str, pydantic.Field(min_length=1, description="One statement that reads")]
    name: Literal["sql"] = "sql"
    url: Annotated[str, pydantic.Field(description="SQLAlchemy URL without a password; else FLYWHEEL_SQL_URL")] = ""
    columns: Annotated[dict[Field, str], pydantic.Field(description='{"our field": "their column"}')] = field(
        default_factory=dict
    )
    increasing: Annotated[str, pydantic.Field(description="A column that only grows: read what is new")] = ""
    workload: Annotated[str, pydantic.Field(description="Workload of records that name none")] = ""

    def parts(self) -> list["Query"]:
        """The query, as the one part.

        Raises:
            SetupError: No database is named, or with a password in the spec.
        """
        return [Query(self)]

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records of a row: the call, the feedback. `raw` is a row with our names for its columns, as JSON."""
        try:
            for record in records(loads(raw)):
                made = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
                try:
                    row = parse(record, source=self.name, at=at, workload=self.workload)
                    yield Parsed(made, row)
                except Rejected as problem:
                    yield Parsed(made, None, str(problem))
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))


class Reached(NamedTuple):
    """How far a query was read: the last value of the increasing column, and the records before the first with it."""

    last: Any
    rows: int


class Query:
    """The rows of a query: a `Part`. Read from its start again where a record of it lies in quarantine."""

    def __init__(self, spec: SQL) -> None:
        self.spec, self.url = spec, address(spec.url)
        self.kind: str = spec.name
        self.label = shown(self.url)
        asked = [self.url.set(password=None, query={}).render_as_string(), spec.query, dict(spec.columns)]
        key = json.dumps([*asked, spec.increasing], sort_keys=True)
        self.cursor = f"{spec.name}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        self.size, self.skipped = None, 0

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The records after `position`, or all.

        Raises:
            SetupError: The database cannot be read, or the query lacks columns that make a record.
        """
        reached = Reached(None, 0)
        if position and not position.get("quarantined") and position["workload"] == self.spec.workload:
            reached = Reached(_loaded(position["last"]), position["rows"])
            self.skipped = reached.rows
        with reading(self.url) as connection:
            result = self._execute(connection, reached.last)
            yield from self._entries(result, reached)

    def _execute(self, connection: Connection, last: Any) -> CursorResult[Any]:
        # Colons are the query's own (`::jsonb`, '12:30'), not SQLAlchemy's; a line of comment must end before a `)`.
        query = text(self.spec.query.strip().rstrip(";").replace(":", r"\:") + "\n")
        statement: Any = query
        if self.spec.increasing:
            inner = query.columns(column(self.spec.increasing)).subquery("q")
            grows = inner.c[self.spec.increasing]
            statement = select(literal_column("*")).select_from(inner).order_by(grows)
            if last is not None:
                statement = statement.where(or_(grows >= bindparam("last", last), grows.is_(None)))
        result = connection.execute(statement, execution_options={"stream_results": True, "yield_per": PAGE})
        if not result.returns_rows:
            raise SetupError(f"the query gives no rows; give one statement that reads: {self.spec.query[:80]!r}")
        return result

    def _entries(self, result: CursorResult[Any], reached: Reached) -> Iterator[Entry]:
        places, grows = self._places(list(result.keys()))
        rows, at = reached.rows, datetime.now(UTC)
        for number, values in enumerate(result, start=1):
            row = {name: plain(values[place], name) for name, place in places.items() if values[place] is not None}
            found = list(self.spec.parse(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"), at))
            value = None if grows is None else values[grows]
            if value is not None and value != reached.last:
                reached = Reached(value, rows)
            rows += len(found) if value is not None else 0
            for n, record in enumerate(found, start=1):
                after = self._position(reached) if n == len(found) and reached.last is not None else None
                digest = hashlib.sha256(record.raw).hexdigest()
                yield Entry(f"{self.label}: row {number}", record.raw, digest, record.row, record.reason, after, 0)

    def _position(self, reached: Reached) -> dict[str, Any]:
        return {"last": _dumped(reached.last), "rows": reached.rows, "workload": self.spec.workload}

    def _places(self, there: list[str]) -> tuple[dict[str, int], int | None]:
        """Where in a row each field is, and the increasing column.

        Raises:
            SetupError: A column is missing, there twice, or no record can be made of those that are there.
        """
        known = [name.casefold() for name in there]

        def place(column: str, what: str) -> int:
            if (times := known.count(column.casefold())) != 1:
                problem = f"has {times} columns named {column!r}, which is to be {what}"
                raise SetupError(f"the query {problem}; its columns are {', '.join(there)}")
            return known.index(column.casefold())

        places: dict[str, int] = {name: place(column, name) for name, column in self.spec.columns.items() if column}
        for name in FIELDS:
            if name not in self.spec.columns and name in known:
                places[name] = place(name, name)
        if missing := lacking(frozenset(places)):
            raise SetupError(
                f"no record can be made of the columns {', '.join(there)}: {missing}; rename them in the query, or "
                'with --source.columns \'{"prompt": "their name"}\''
            )
        return places, place(self.spec.increasing, "the increasing one") if self.spec.increasing else None


def _dumped(value: Any) -> dict[str, Any]:
    """A value as JSON, under the name of its type."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return {type(value).__name__: value}
    if isinstance(value, datetime | date):
        return {type(value).__name__: value.isoformat()}
    if isinstance(value, Decimal | UUID):
        return {type(value).__name__: str(value)}
    raise SetupError(f"the increasing column holds {type(value).__name__}; it must hold numbers, times or text")


def _loaded(dumped: Mapping[str, Any]) -> Any:
    ((kind, value),) = dumped.items()
    return READERS[kind](value) if kind in READERS else value
