"""What a source is made of: parts that are read one after another, each with a cursor of its own.

A part is a file, an experiment of a tracking server, a project, a query: whatever remembers by itself how far it has
been read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from infra.database.records import Row


class Entry(NamedTuple):
    """One record as read: a row, or the reason why it is none.

    Attributes:
        where: Its place: file and line, id of a trace, number of a row.
        raw: Its bytes; of one that is too long the first.
        digest: sha256 of all its bytes, or of what of them stays the same; empty where that is `raw`.
        row: What it says.
        reason: Why it cannot be understood; empty where it can.
        position: The cursor after it, as JSON; None where what it was cut from (a line, a page) has more to come.
        done: How much of the part's `size` has been read.
    """

    where: str
    raw: bytes
    digest: str
    row: Row | None
    reason: str
    position: dict[str, Any] | None
    done: int


class Part(Protocol):
    """What `ingest` reads.

    Attributes:
        kind: Name of the kind of source, which makes the ids of its records unique.
        cursor: Key of its cursor, the same each time.
        label: What a person calls it: a path, an address; without passwords.
        size: In bytes or rows, whatever `Entry.done` counts; None where nobody knows.
        skipped: After `read`: rows before the position that it went on from.
    """

    kind: str
    cursor: str
    label: str
    skipped: int

    @property
    def size(self) -> int | None: ...

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The records after `position` (with the number of them in `quarantined`), or all where it says nothing here.

        Raises:
            SetupError: The part cannot be read.
        """
