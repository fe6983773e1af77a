"""Log files of JSON lines: a line is a record (see `infra/database/records.py`), a blank line is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed, parse
from tasks.sources.files import Cut, Files, lines


@dataclass(frozen=True)
class JSONL(Files):
    """Files of JSON lines.

    Attributes:
        paths: Files, folders (all that end in .jsonl, .ndjson, plain or .gz, at any depth) or glob patterns.
        workload: The workload of interactions that name none.
    """

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paths: Annotated[tuple[str, ...], Field(min_length=1, description="Files, folders or glob patterns")]
    name: Literal["jsonl"] = "jsonl"
    workload: Annotated[str, Field(description="Workload of records that name none")] = ""

    def cut(self, head: bytes) -> Cut:
        """Into lines, whatever it begins with."""
        return lines

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The one record of a line."""
        try:
            record = loads(raw)
            yield Parsed(raw, parse(record, source=self.name, at=at, workload=self.workload))
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))
