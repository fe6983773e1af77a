"""Tombstones: what was erased on request and must not come back when its log is read again.

Kept is a sha256 and a time, not the id. It is of "interaction:ID", whatever the source; of "client:ID"; or of
"raw:" and the digest of bytes that lay in quarantine. An interaction, and what is said of it, is refused for good. Of a
client only what was logged before it was forgotten is refused: who comes back is a customer like any other, and in some
logs `client_id` is the whole application. A hash of an id that can be guessed can be guessed too: this keeps a promise,
it is no secret.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import literal, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from infra.database.among import among
from infra.database.records import InteractionRow, Row
from infra.database.tables import Forgotten

INTERACTION, CLIENT, RAW = "interaction", "client", "raw"


def tombstone(kind: str, name: str) -> str:
    """The id of a row of `tables.Forgotten`."""
    return hashlib.sha256(f"{kind}:{name}".encode()).hexdigest()


def forgotten(db: Session, rows: Sequence[Row]) -> set[int]:
    """The numbers of the rows that were erased; one small query as long as nothing was."""
    if not rows or db.scalar(select(literal(1)).select_from(Forgotten).limit(1)) is None:
        return set()
    names = [row.external_id if isinstance(row, InteractionRow) else row.record_id for row in rows]
    marks = [tombstone(INTERACTION, name) for name in names]
    clients = {row.client for row in rows if isinstance(row, InteractionRow) and row.client is not None}
    of_client = {client: tombstone(CLIENT, client) for client in clients}
    since = buried(db, {*marks, *of_client.values()})
    return {
        n
        for n, row in enumerate(rows)
        if marks[n] in since
        or (isinstance(row, InteractionRow) and row.client and _before(row.at, since.get(of_client[row.client])))
    }


def _before(at: datetime, when: datetime | None) -> bool:
    return when is not None and at <= when


def buried(db: Session, ids: Iterable[str]) -> dict[str, datetime]:
    """Which tombstones there are, and since when."""
    found = db.execute(select(Forgotten.id, Forgotten.created).where(among(db, Forgotten.id, sorted(ids))))
    return {mark: created for mark, created in found}


def bury(db: Session, ids: Iterable[str]) -> None:
    """Put up tombstones, or renew their time.

    PostgreSQL waits for every batch that has looked for them and is not yet committed, so that whoever deletes rows
    after this deletes those of that batch too. On SQLite there is one writer at a time.
    """
    name = db.get_bind().dialect.name
    if name == "postgresql":
        db.execute(text(f"LOCK TABLE {Forgotten.__tablename__} IN ACCESS EXCLUSIVE MODE"))
    made: Any = {"sqlite": sqlite, "postgresql": postgresql}[name].insert(Forgotten.__table__)
    renewed = made.on_conflict_do_update(index_elements=["id"], set_={"created": made.excluded.created})
    db.execute(renewed, [{"id": mark} for mark in sorted(ids)])
