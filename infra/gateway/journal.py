"""What this gateway has answered and the database may not have yet: a line each, appended before the answer goes out.

A line that `append` has taken is the system's: it outlives this process however that ends, and a power cut once
`sync` has seen it to the disk, which the recorder has done every second. Appending costs some ten microseconds, so that
it is done where the answer is made; waiting for the disk, or for the database, is not.

The lines go into one file until `turn`, and from then on into the next; a file behind is deleted as soon as all of its
lines are in the database, or drained where some never went there from memory. `spool.py` says whose files are whose.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from infra.gateway import spool

LARGEST = 64 << 20  # of a file, where the database is away for long


@dataclass
class Segment:
    """A file of the journal.

    Attributes:
        size: Bytes of its lines.
        waiting: How many of its lines are on their way to the database from memory.
        spilled: Whether it has lines that are not, and have to be read from here.
    """

    path: Path
    file: BinaryIO
    size: int = 0
    waiting: int = 0
    spilled: bool = False


class Journal:
    """The files of this process."""

    def __init__(self) -> None:
        self.name = uuid4().hex[:12]
        self.mark: BinaryIO | None = None
        self.now: Segment | None = None
        self.behind: list[Segment] = []  # the oldest first

    def append(self, line: bytes) -> Segment:
        """Write a line, which only the owner can read; the segment that has it.

        Raises:
            OSError: There is no room, or no right to. Nothing of the line is left in the file then.
        """
        if self.now and self.now.size > LARGEST:
            self.turn()
        self.now = segment = self.now or self._begun()
        left = line + b"\n"
        with self._held(segment) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while left:
                    left = left[os.write(file.fileno(), left) :]
            except OSError:
                os.truncate(file.fileno(), before)
                raise
        segment.size += len(line) + 1
        return segment

    @contextmanager
    def _held(self, segment: Segment) -> Iterator[BinaryIO]:
        """The segment's file, locked; opened anew where it was rewritten, to erase somebody, or drained by hand."""
        while True:
            with spool.locked(segment.file):
                if spool.is_at(segment.path, segment.file):
                    yield segment.file
                    return
            segment.file.close()
            segment.file = _opened(segment.path)

    def _begun(self) -> Segment:
        place = spool.folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.mark is None or not spool.is_at(place / f"{self.name}.live", self.mark):
            mark = _opened(place / f"{self.name}.live")
            fcntl.flock(mark, fcntl.LOCK_EX)
            self.mark = mark
        path = place / f"{datetime.now(UTC):%Y-%m-%dT%H.%M.%S.%f}-{self.name}.jsonl"
        return Segment(path, _opened(path))

    def turn(self) -> None:
        """Leave the file as it is; the next line begins another."""
        if self.now:
            self.behind.append(self.now)
        self.now = None

    def sync(self) -> None:
        """See what was appended until now, and the name of its file, to the disk. May run in another thread."""
        segment = self.now
        if segment is None:
            return
        with suppress(ValueError):  # closed meanwhile, because it was opened anew
            descriptor = os.dup(segment.file.fileno())
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        place = os.open(segment.path.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)

    def done(self) -> list[Segment]:
        """The files behind that have nothing more on its way from memory, off the list."""
        done = [segment for segment in self.behind if not segment.waiting]
        self.behind = [segment for segment in self.behind if segment.waiting]
        return done

    def close(self) -> None:
        """Leave what there is to whoever comes; nothing may be appended any more."""
        for segment in [*self.behind, *([self.now] if self.now else [])]:
            segment.file.close()
        if self.mark:
            with suppress(OSError):
                (spool.folder() / f"{self.name}.live").unlink()
            self.mark.close()


def _opened(path: Path) -> BinaryIO:
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))
