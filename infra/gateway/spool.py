"""The spool: lines of JSON in `home/spool`, each written before its customer has the answer, until the database has it.

A line is whole, with its id and time, so that storing it twice is storing it once: the gateway that drains its spool,
another gateway of the same home, and `flywheel ingest gateway` may all read it at once. Every gateway writes to files
of its own (`journal.py`), and keeps a lock on `NAME.live` for as long as it lives, which the system takes from it
however it ends. Files of one that lives are its own affair; all others are whoever's drains them first. A file is
deleted, under its lock, when every line that it has is in the database, as a row or in quarantine, and on the disk
there: SQLite alone has a commit on the disk only some time later.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from infra.database.jsontext import Rejected, loads
from infra.database.records import parse
from infra.database.session import session, to_disk
from infra.database.store import Fate, Record, accept
from infra.privacy.redaction import redactor
from infra.settings import SetupError, settings

SOURCE: Final = "gateway"
AWAY = (SetupError, OperationalError, InterfaceError, InternalError, NoConnection, OSError)
BATCH_ROWS = 200
BATCH_BYTES = 16 << 20


def read(raw: bytes, where: str) -> Record:
    """A line as the row that it is, or with the reason why it is none."""
    row, reason = None, ""
    try:
        row = parse(loads(raw), source=SOURCE, at=datetime.now(UTC))
    except Rejected as problem:
        reason = str(problem)
    except Exception as problem:  # a line that stops the reader would keep all behind it from the database
        reason = f"it cannot be understood: {type(problem).__name__}"
    return Record(where, raw, row, reason)


def put(found: Sequence[Record]) -> list[tuple[Fate, str]]:
    """Store what is new, in one transaction; what the database will not have goes to quarantine.

    Raises:
        Exception: One of AWAY: the database takes nothing now.
    """
    try:
        with session() as db:
            return accept(db, SOURCE, found, redactor())
    except AWAY:
        raise
    except Exception as problem:  # one bad record must not keep the others out
        if len(found) > 1:
            return [fate for one in found for fate in put([one])]
        if found[0].row is None:
            raise
        return put([found[0]._replace(row=None, reason=f"the database refuses it: {type(problem).__name__}")])


def folder() -> Path:
    return settings().home / "spool"


def files(place: Path) -> list[Path]:
    """The spool files in a folder that hold anything and whose gateway does not live, the oldest first."""
    found = [file for file in sorted(place.glob("*.jsonl")) if size_of(file)]
    living: dict[str, bool] = {}
    for file in found:
        name = owner(file)
        if name not in living:
            living[name] = _lives(place / f"{name}.live")
    return [file for file in found if not living[owner(file)]]


def owner(file: Path) -> str:
    """Name of the gateway that a file is of."""
    return file.stem.rpartition("-")[2]


def _lives(mark: Path) -> bool:
    """Whether somebody holds the lock; the mark of one that does not is taken away."""
    try:
        with mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark.unlink(missing_ok=True)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def size() -> int:
    """Bytes in this home's spool, those of gateways that live included."""
    return sum(map(size_of, folder().glob("*.jsonl")))


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # drained since it was listed
        return 0


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, offset behind it) of each line that was whole when this began, and of a torn one at the end."""
    with locked(file):
        size = os.fstat(file.fileno()).st_size
    number = 0
    while file.tell() < size and (line := file.readline()):
        number += 1
        if line.strip():
            yield number, line.rstrip(b"\n"), file.tell()


def drain(path: Path) -> list[Fate]:
    """Store what a file holds and delete it, unless more was added meanwhile; what became of each line.

    Raises:
        Exception: One of AWAY: the database takes nothing now; the file stays as it is.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # another has drained it
        return []
    fates: list[Fate] = []
    batch: list[Record] = []
    weight = 0
    with file:
        for number, raw, _ in lines(file):
            batch.append(read(raw, f"{path}:{number}"))
            weight += len(raw)
            if len(batch) == BATCH_ROWS or weight > BATCH_BYTES:
                fates += _stored(batch)
                batch, weight = [], 0
        fates += _stored(batch) if batch else []
        to_disk()
        with locked(file):
            if is_at(path, file) and os.fstat(file.fileno()).st_size == file.tell():
                path.unlink()
    return fates


def _stored(batch: Sequence[Record]) -> list[Fate]:
    return [fate for fate, _ in put(batch)]


@contextmanager
def locked(file: BinaryIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def is_at(path: Path, file: BinaryIO) -> bool:
    """Whether the open file still has its name: it has not when it was drained, or rewritten to erase somebody."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
