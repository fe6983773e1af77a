"""Log files of JSON lines: a line is a record (see `infra/database/records.py`), a blank line is none.

A call whose `response` is null is unlabelled traffic, which a teacher may answer (`tasks/dataset/relabel.py`).

Also read is what OpenAI's platform gives back (`tasks/sources/openai.py`) and streamed answers, a chunk a line
(`tasks/sources/streams.py`). Where these lack their requests, the other files of the run are looked through for them
(`tasks/sources/apart.py`): the input of a batch is read together with its output.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed, parse
from infra.settings import SetupError
from tasks.sources.apart import Requests, is_batch_request
from tasks.sources.files import Cut, Files, LogFile, head, lines, text
from tasks.sources.openai import call, is_page
from tasks.sources.streams import blocks, chunk_in, is_streamed, payload, taken_apart


@dataclass(frozen=True)
class JSONL(Files):
    """Files of JSON lines.

    Attributes:
        paths: Files, folders (all .jsonl and .ndjson, rotated and .gz too, at any depth) or glob patterns.
        workload: The workload of interactions that name none.
    """

    suffixes = (".jsonl", ".ndjson")
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paths: Annotated[tuple[str, ...], Field(min_length=1, description="Files, folders or glob patterns")]
    name: Literal["jsonl"] = "jsonl"
    workload: Annotated[str, Field(description="Workload of records that name none")] = ""

    def parts(self) -> list[LogFile]:
        """The files, each once.

        Raises:
            SetupError: As of other files; or all of them are inputs of batches.
        """
        files = self.files()
        if all(_is_batch_input(file) for file in files):
            raise SetupError(
                f"file {str(files[0])!r} is the input of a batch, requests without answers; "
                "give the batch's output together with it"
            )
        requests = Requests(files)
        return [LogFile(file, self, partial(self._records, requests=requests, file=file)) for file in files]

    def cut(self, head: bytes) -> Cut:
        """Into lines, or blocks of them where it begins with streams."""
        return blocks if is_streamed(head) else lines

    def identity(self, raw: bytes) -> bytes:
        """The first line: a stream may go on."""
        return raw.partition(b"\n")[0]

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records of a line or of the lines of a stream; requests that lie apart are looked for in `paths`."""
        return self._records(raw, at, self._requests, None)

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self.files())

    def _records(self, raw: bytes, at: datetime, requests: Requests, file: Path | None) -> Iterator[Parsed]:
        if b"\n" in raw or raw.startswith(b"data:"):
            yield from self._streamed(raw, at, requests, file)
            return
        try:
            record = loads(raw)
            if not isinstance(record, dict) or ("request" in record and "response" in record):
                yield self._parsed(raw, labelled(record), at)
            elif chunk_in(record) is not None:
                yield from self._streamed(raw, at, requests, file)
            elif is_page(record):
                for each in record["data"]:
                    yield from self._records(json.dumps(each).encode(), at, requests, file)
            elif (said := call(record, requests, file)) is not None:
                yield self._parsed(raw, said, at)
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))

    def _streamed(self, raw: bytes, at: datetime, requests: Requests, file: Path | None) -> Iterator[Parsed]:
        for said, stream in taken_apart(raw):
            if stream is None:
                yield from self._records(payload(said), at, requests, file)
                continue
            try:
                if (record := stream.record()) is not None:
                    yield self._parsed(said, record, at)
            except Rejected as problem:
                yield Parsed(said, None, str(problem))

    def _parsed(self, raw: bytes, record: Any, at: datetime) -> Parsed:
        try:
            return Parsed(raw, parse(record, source=self.name, at=at, workload=self.workload))
        except Rejected as problem:
            return Parsed(raw, None, str(problem))


def labelled(record: Any) -> Any:
    """A call whose response is said to be null as one that failed: traffic that only a teacher can label.

    A call that does not mention a response is none: its answer may come on a line of its own, under the same id.
    """
    if not isinstance(record, dict) or record["response"] is not None or "expected" in record:
        return record
    return {**record, "response": {"error": {"type": "unlabelled", "message": "the log has no response"}}}


def _is_batch_input(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return is_batch_request(loads(head(text(opened)).lstrip().partition(b"\n")[0]))
    except (OSError, Rejected):
        return False
