"""Last lines of logs that were half written when they were read: in quarantine until the whole line has been read.

A line without an end may be all that there will ever be of it, so its bytes are kept like those of any other that
cannot be understood. When the line is whole, other bytes are read in its place, and nothing else would take the half
out of quarantine. It is known again by its number, its size and its sha256, under whatever name the log has by then: it
may have been rotated in between. Its row has all three: place, reason and digest.
"""

import hashlib
import re
from collections.abc import Iterable

from sqlalchemy import select

from infra.database.session import session
from infra.database.store import Found
from infra.database.tables import Quarantine
from tasks.sources.part import Entry

SAYS = re.compile(r"; the file ends within it, after (\d+) bytes$")


def half(entry: Entry) -> Entry:
    """The last entry of a file; if it is refused and its line has no end, the reason says so."""
    if not entry.reason or entry.position:
        return entry
    return entry._replace(reason=f"{entry.reason}; the file ends within it, after {len(entry.raw)} bytes")


class Halves:
    """Those of one kind of source that lie in quarantine."""

    def __init__(self, source: str) -> None:
        wanted = select(Quarantine.position, Quarantine.digest, Quarantine.reason).where(
            Quarantine.source == source, Quarantine.reason.like("%; the file ends within it, after % bytes")
        )
        self.known: dict[str, list[tuple[int, str]]] = {}
        with session(write=False) as db:
            for place, digest, reason in db.execute(wanted):
                if said := SAYS.search(reason):
                    self.known.setdefault(_line(place), []).append((int(said[1]), digest))

    def completed(self, batch: Iterable[Found]) -> list[str]:
        """The digests of those whose whole lines are in a batch."""
        return [
            digest
            for entry in (batch if self.known else ())
            for size, digest in self.known.get(_line(entry.where), ())
            if len(entry.raw) > size and hashlib.sha256(entry.raw[:size]).hexdigest() == digest
        ]


def _line(place: str) -> str:
    return place.rpartition(":")[2]
