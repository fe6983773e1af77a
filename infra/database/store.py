"""Rows → the database, each once; the gateway stores by the same functions as `ingest`.

A batch is written by the driver alone (SQLite's `executemany`, PostgreSQL's `COPY`): made into statements of a thousand
rows by SQLAlchemy, it took five times as long. What is there already is looked up first. Two writers that bring the
same row at once meet at the unique index: on SQLite the second has waited for the first from its beginning; on
PostgreSQL its `COPY` waits, fails, is undone, and looks again.

On PostgreSQL the first look is among the rows of the batch's time: where months have partitions (`partitions.sql`), it
is into one or two of them. What is there under another time meets the unique index as well.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from sqlalchemy import Dialect, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.forgotten import RAW, buried, forgotten, tombstone
from infra.database.jsontext import Rejected, dumps
from infra.database.records import FeedbackRow, InteractionRow, Row
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine, now
from infra.privacy.redaction import Redactor

Outcome = Literal["stored", "duplicate", "conflict"]
Fate = Literal["stored", "duplicate", "quarantined"]
Key = tuple[str, str]


class Record(NamedTuple):
    """The plainest `Found`: a record that came by itself, not from a part of a source, or that is ready."""

    where: str
    raw: bytes
    row: Row | None
    reason: str
    digest: str = ""


class Found(Protocol):
    """A record as it was found: `records.Parsed`, with its place, and the sha256 of its bytes if these are cut."""

    @property
    def where(self) -> str: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def digest(self) -> str: ...
    @property
    def row(self) -> Row | None: ...
    @property
    def reason(self) -> str: ...


def accept(db: Session, source: str, found: Sequence[Found], redact: Redactor) -> list[tuple[Fate, str]]:
    """Store what is a row, keep the rest in quarantine, and let out of it what has been understood since.

    Nothing is stored but what `redact` leaves of it. Whether a record is there already is told by what it said before,
    so that reading it again under other settings adds nothing.

    Returns what became of each record, in order, and of one that lies in quarantine why. One that was forgotten is a
    duplicate: it was here before, and nothing is stored.
    """
    found = [ready(entry, redact) for entry in found]
    unread = {tombstone(RAW, _digest(entry)) for entry in found if entry.row is None}
    erased = buried(db, unread) if unread else {}
    outcomes = iter(store(db, [entry.row for entry in found if entry.row is not None]))
    fates: list[tuple[Fate, str]] = []
    kept: dict[str, Quarantine] = {}
    fine: list[Found] = []
    for entry in found:
        outcome = next(outcomes) if entry.row is not None else "conflict"
        if entry.row is None and tombstone(RAW, _digest(entry)) in erased:
            fates.append(("duplicate", ""))
            continue
        if outcome != "conflict":
            fates.append((outcome, ""))
            fine.append(entry)
            continue
        reason = redact.text(entry.reason)
        if entry.row is not None:
            reason = f"id {entry.row.external_id!r} is that of another record; give each its own id, or none"
        fates.append(("quarantined", reason))
        raw = redact.text(entry.raw.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        digest = _digest(entry)
        kept[digest] = Quarantine(source=source, position=entry.where, digest=digest, raw=raw, reason=reason)
    quarantine(db, list(kept.values()))
    if fine and db.scalar(select(Quarantine.id).where(Quarantine.source == source).limit(1)):
        release(db, source, sorted({_digest(entry) for entry in fine} - kept.keys()))
    return fates


def ready(entry: Found, redact: Redactor) -> Found:
    """A record with what may be stored of its row, redacted and its JSON written; one that is ready stays as it is.

    All of it needs no database, so that a process which reads ahead can do it for the one that stores.
    """
    row = entry.row
    if row is None or isinstance(row.value if isinstance(row, FeedbackRow) else row.request, bytes):
        return entry
    try:
        if isinstance(row, FeedbackRow):
            row = row._replace(value=dumps(redact.value(row.value)))
        else:
            named = ("client", "conversation", "request", "response")
            left = redact.record({name: getattr(row, name) for name in named}, "client")
            left["response"] = _unspelled(row.response, left["response"])
            row = row._replace(**{**left, "request": dumps(left["request"]), "response": dumps(left["response"])})
    except Rejected as problem:
        return Record(entry.where, entry.raw, None, str(problem), entry.digest)
    return Record(entry.where, entry.raw, row, "", entry.digest)


def _unspelled(said: Any, left: Any) -> Any:
    """A redacted response without the log-probabilities that spell out, token by token, what was redacted in it."""
    if left is said:
        return left
    choices = [
        {name: value for name, value in after.items() if name != "logprobs" or after["message"] == before["message"]}
        for before, after in zip(said.get("choices") or (), left.get("choices") or (), strict=True)
    ]
    return {**left, "choices": choices} if choices else left


def _digest(entry: Found) -> str:
    return entry.digest or hashlib.sha256(entry.raw).hexdigest()


def store(db: Session, rows: Sequence[Row]) -> list[Outcome]:
    """Insert what is new; what came of each row, in order.

    "duplicate": the same record is there, or earlier in `rows`, or it was there and is forgotten. "conflict": another
    record has its (source, external id); nothing is stored then, and the caller has to keep the record elsewhere.
    """
    outcomes: list[Outcome] = ["duplicate"] * len(rows)
    erased = forgotten(db, rows)
    for table, made in ((Interaction, InteractionRow), (Feedback, FeedbackRow)):
        mine = {n: (row.source, row.external_id) for n, row in enumerate(rows) if type(row) is made and n not in erased}
        firsts: dict[Key, int] = {}
        for n, key in mine.items():
            firsts.setdefault(key, n)
        before = _insert(db, _table(table), {key: rows[n] for key, n in firsts.items()})
        for n, key in mine.items():
            if n == firsts[key] and key not in before:
                outcomes[n] = "stored"
            elif before.get(key, rows[firsts[key]].digest) not in ("", rows[n].digest):  # "": stored when none was kept
                outcomes[n] = "conflict"
    return outcomes


def _insert(db: Session, table: Table, rows: Mapping[Key, Row]) -> dict[Key, str]:
    """Insert the rows whose keys are not there; the others' keys and digests."""
    from psycopg.errors import UniqueViolation

    near = db.get_bind().dialect.name == "postgresql"
    while True:
        before = _present(db, table, rows, near)
        # In one order everywhere: two ingests at once would otherwise wait for each other's rows.
        new = [rows[key] for key in sorted(rows.keys() - before.keys())]
        if not new:
            return before
        try:
            with db.begin_nested():
                _write(db, table, new)
            return before
        except UniqueViolation:  # one is there under another time, or another writer has brought and committed it
            near = False


def _present(db: Session, table: Table, rows: Mapping[Key, Row], near: bool) -> dict[Key, str]:
    """The digests of the rows that are there; `near`: within the time of these."""
    found: dict[Key, str] = {}
    ids: dict[str, list[str]] = {}
    for source, external_id in rows:
        ids.setdefault(source, []).append(external_id)
    wanted = select(table.c.external_id, table.c.digest)
    if near and rows:
        times = [row.at for row in rows.values()]
        wanted = wanted.where(table.c.at.between(min(times), max(times)))
    for source, mine in ids.items():
        there = db.execute(wanted.where(table.c.source == source, among(db, table.c.external_id, mine)))
        found |= {(source, external_id): digest for external_id, digest in there}
    return found


def _write(db: Session, table: Table, rows: Sequence[Row]) -> None:
    connection = db.connection()
    names, values = _tuples(table, rows, connection.dialect)
    columns = ", ".join(names)
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", values)
        return
    from psycopg import OperationalError as DriverError

    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
            for row in values:
                copy.write_row(row)
    except DriverError as problem:  # SQLAlchemy does not see what goes past it
        raise OperationalError(f"COPY {table.name}", None, problem) from problem


def _tuples(table: Table, rows: Sequence[Row], dialect: Dialect) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of columns, and rows in their order as the driver takes them."""
    columns = [*(table.c[name] for name in rows[0]._fields), table.c.created]
    processors = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns]
    created = now() if processors[-1] is None else processors[-1](now())
    makers = [(n, make) for n, make in enumerate(processors[:-1]) if make is not None]
    values = []
    for row in rows:
        made: list[Any] = [*row, created]
        for n, make in makers:
            if made[n] is not None:
                made[n] = make(made[n])
        values.append(tuple(made))
    return [column.name for column in columns], values


def quarantine(db: Session, entries: Sequence[Quarantine]) -> None:
    """Keep records that cannot be understood; the same bytes are kept once a source."""
    unique = {(entry.source, entry.digest): entry for entry in entries}
    if not unique:
        return
    target = _table(Quarantine)
    names = [column.key for column in target.columns if column.key not in ("id", "created")]
    statement = _dialect(db).insert(target).on_conflict_do_nothing(index_elements=["source", "digest"])
    db.execute(statement, [{name: getattr(unique[key], name) for name in names} for key in sorted(unique)])


def release(db: Session, source: str, digests: Sequence[str]) -> None:
    """Take out of quarantine what has been understood since."""
    db.execute(delete(Quarantine).where(Quarantine.source == source, among(db, Quarantine.digest, digests)))


def move_cursor(db: Session, source: str, position: dict[str, Any]) -> None:
    """Remember how far a source has been read."""
    values = {"source": source, "position": position, "moved": now()}
    statement = _dialect(db).insert(_table(Cursor)).values(values)
    moved = {"position": statement.excluded.position, "moved": statement.excluded.moved}
    db.execute(statement.on_conflict_do_update(index_elements=["source"], set_=moved))


def _table(mapped: type[Any]) -> Table:
    table: Table = mapped.__table__
    return table


def _dialect(db: Session) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[db.get_bind().dialect.name]
