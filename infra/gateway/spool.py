"""Records that the database could not take: lines of JSON in `home/spool`, a file a day, until it can.

A line is whole, with its id and time, so that storing it twice is storing it once: the gateway that drains its spool,
another gateway of the same home, and `flywheel ingest gateway` may all read it at once. A line is on the disk before
its customer is answered. Writers hold the file's lock for the length of a write; a file is deleted, under the same
lock, when every line that it has is in the database, as a row or in quarantine.
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
from infra.database.session import session
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
    """The spool files in a folder that hold anything, the oldest first."""
    return [file for file in sorted(place.glob("*.jsonl")) if (size := size_of(file)) and size > 0]


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # drained since it was listed
        return 0


def append(line: bytes) -> None:
    """Write a line to today's file, which only its owner can read, and see it to the disk.

    Raises:
        OSError: There is no room, or no right to. Nothing of the line is left in the file then.
    """
    place = folder()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = place / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
    while True:
        with (
            open(path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
            locked(file),
        ):
            if not _is_at(path, file):  # drained and deleted while we waited for the lock
                continue
            before = file.seek(0, os.SEEK_END)
            torn = before and os.pread(file.fileno(), 1, before - 1) != b"\n"  # a writer was killed in its write
            left = (b"\n" if torn else b"") + line + b"\n"
            try:
                while left:
                    left = left[file.write(left) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        if not before:
            _sync(place)
        return


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, offset behind it) of each line that was whole when this began, and of a torn one at the end."""
    with locked(file):
        size = os.fstat(file.fileno()).st_size
    number = 0
    while file.tell() < size and (line := file.readline()):
        number += 1
        if line.strip():
            yield number, line.rstrip(b"\n"), file.tell()


def drain(path: Path) -> int:
    """Store what a file holds and delete it, unless more was added meanwhile; how many rows were new.

    Raises:
        Exception: One of AWAY: the database takes nothing now; the file stays as it is.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # another has drained it
        return 0
    new, batch, weight = 0, [], 0
    with file:
        for number, raw, _ in lines(file):
            batch.append(read(raw, f"{path}:{number}"))
            weight += len(raw)
            if len(batch) == BATCH_ROWS or weight > BATCH_BYTES:
                new += _stored(batch)
                batch, weight = [], 0
        new += _stored(batch) if batch else 0
        with locked(file):
            if _is_at(path, file) and os.fstat(file.fileno()).st_size == file.tell():
                path.unlink()
    return new


def _stored(batch: Sequence[Record]) -> int:
    return [fate for fate, _ in put(batch)].count("stored")


@contextmanager
def locked(file: BinaryIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sync(place: Path) -> None:
    """See a new file's name to the disk."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
