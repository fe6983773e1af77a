"""OpenTelemetry's traces and logs as files: what the collector's file exporter writes, or bodies of OTLP/HTTP.

| a file                              | is cut into                                                        |
|-------------------------------------|--------------------------------------------------------------------|
| JSON, an export request a line      | lines                                                              |
| JSON over several lines             | one document                                                       |
| protobuf, lengths in front          | messages, as the exporter writes them with `format: proto`         |
| protobuf                            | one request                                                        |

What of it is a record, and which conventions are read, is in `infra/telemetry`. Spans and log records about
other things are no rows. Events that make up one call must lie in one request, as an exporter sends them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed
from infra.telemetry import otlp
from infra.telemetry.genai import SOURCE, rows
from tasks.sources.files import Cut, Files, framed, lines, whole

IS_JSON = re.compile(rb"\s*\{\s*[\"}]")


@dataclass(frozen=True)
class OTel(Files):
    """Files of OpenTelemetry traces and logs with GenAI, OpenLLMetry or OpenInference attributes.

    Attributes:
        paths: Files, folders (all .json, .jsonl, .ndjson, .pb and .binpb, rotated and .gz too) or glob patterns.
        workload: The workload of calls that name none; without it, the resource's `service.name`.
    """

    suffixes = (".json", ".jsonl", ".ndjson", ".pb", ".binpb")
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paths: Annotated[tuple[str, ...], Field(min_length=1, description="Files, folders or glob patterns")]
    name: Literal["otel"] = SOURCE
    workload: Annotated[str, Field(description="Workload of calls that name none; else service.name")] = ""

    def cut(self, head: bytes) -> Cut:
        """By what it begins with."""
        if IS_JSON.match(head):
            first, broken, _ = head.strip().partition(b"\n")
            return whole if broken and not first.rstrip().endswith(b"}") else lines
        return whole if head[:1] == b"\n" else framed  # field 1 of a request; a length under 167 MB begins otherwise

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records of a request."""
        try:
            document = loads(raw) if IS_JSON.match(raw) else otlp.decode(raw, otlp.signal_of(raw))
            yield from rows(document, at, self.workload)
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))
