"""What lies in quarantine, read again by the reader of its source: after a fix, or with the workload that was missing.

Files are read again from their start as long as a record of them lies in quarantine. This is for the rest: what an
exporter sent to the gateway, what a server or a database gave, and files that are gone. What is understood now leaves
quarantine, what is not stays in it. A record that was too long is kept only in part and stays.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from sqlalchemy import func, select

from infra.database.records import Parsed
from infra.database.session import session
from infra.database.tables import Quarantine
from infra.gateway import spool
from infra.settings import SetupError
from tasks.sources.jsonl import JSONL
from tasks.sources.langfuse import Langfuse
from tasks.sources.mlflow import MLflow
from tasks.sources.otel import OTel
from tasks.sources.part import Entry
from tasks.sources.sql import SQL

PAGE = 100
Reader = Callable[[bytes, datetime], Iterator[Parsed]]


@dataclass(frozen=True)
class Quarantined:
    """Records in quarantine.

    Attributes:
        sources: Kinds of sources; by default all that have any.
        workload: The workload of interactions that name none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sources: Annotated[tuple[str, ...], Field(description="Kinds of sources, such as otel; by default all")] = ()
    name: Literal["quarantine"] = "quarantine"
    workload: Annotated[str, Field(description="Workload of records that name none")] = ""

    def parts(self) -> list["Ward"]:
        """One for each kind of source.

        Raises:
            SetupError: A kind is unknown, or nothing of it lies in quarantine.
        """
        readers = self.readers()
        for name in self.sources:
            if name not in readers:
                raise SetupError(f"source {name!r} does not exist; known are {', '.join(readers)}")
        with session(write=False) as db:
            counts = db.execute(select(Quarantine.source, func.count()).group_by(Quarantine.source))
            found = {source: count for source, count in counts if source in (self.sources or readers)}
        if not found:
            raise SetupError(f"nothing of {', '.join(self.sources) or 'any source'} lies in quarantine")
        return [Ward(source, found[source], readers[source]) for source in sorted(found)]

    def readers(self) -> dict[str, Reader]:
        """How the records of each kind of source are read."""
        return {
            "jsonl": JSONL((), workload=self.workload).parse,
            "otel": OTel((), workload=self.workload).parse,
            "mlflow": MLflow(workload=self.workload).parse,
            "langfuse": Langfuse(workload=self.workload).parse,
            "sql": SQL("", workload=self.workload).parse,
            "gateway": _recorded,
        }


def _recorded(raw: bytes, at: datetime) -> Iterator[Parsed]:
    line = spool.read(raw, "")
    yield Parsed(raw, line.row, line.reason)


class Ward:
    """What lies in quarantine of one kind of source: a `Part`."""

    def __init__(self, source: str, size: int, reader: Reader) -> None:
        self.kind, self.size, self.reader = source, size, reader
        self.label, self.cursor, self.skipped = f"{source} in quarantine", f"quarantine:{source}", 0

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """All of it; what comes in meanwhile is for the next time."""
        last, done = 0, 0
        while page := self._page(last):
            for kept in page:
                last, done = kept.id, done + 1
                found = list(self.reader(kept.raw, kept.created)) or [Parsed(kept.raw, None, "no record is in it")]
                for parsed in found:
                    whole = len(found) == 1
                    yield Entry(
                        kept.position, parsed.raw, kept.digest if whole else "", parsed.row, parsed.reason, None, done
                    )  # fmt: skip

    def _page(self, after: int) -> list[Quarantine]:
        mine = select(Quarantine).where(Quarantine.source == self.kind, Quarantine.id > after)
        with session(write=False) as db:
            return list(db.scalars(mine.order_by(Quarantine.id).limit(PAGE)))
