"""Log files of JSON lines, plain or gzipped: a file, a folder, a glob.

A line is a record (see `infra/database/records.py`), a blank line is none. Files are read in blocks, so that neither a
huge file nor a huge line needs memory. The cursor of a file is a byte offset in its text and the digest of what lies
before it: a log that has grown is read from there, a file that was changed from its start.
"""

import glob
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal, NamedTuple

from pydantic import Field

from infra.database.messages import Rejected
from infra.database.records import Row, parse
from infra.settings import SetupError

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
LONGEST_LINE = 16 << 20
KEPT_OF_LONGER = 64 << 10
BLOCK = 256 << 10


@dataclass(frozen=True)
class JSONL:
    """Files of JSON lines.

    Attributes:
        paths: Files, folders (all that end in .jsonl, .ndjson, plain or .gz, at any depth) or glob patterns.
        workload: The workload of interactions that name none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paths: Annotated[tuple[str, ...], Field(min_length=1, description="Files, folders or glob patterns")]
    name: Literal["jsonl"] = "jsonl"
    workload: Annotated[str, Field(description="Workload of records that name none")] = ""

    def parts(self) -> list["LogFile"]:
        """The files, each once.

        Raises:
            SetupError: A path does not exist, is empty, or is a folder without such files.
        """
        found = {file.resolve(): LogFile(file.resolve(), self) for path in self.paths for file in _files(path)}
        return list(found.values())


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_dir():
        files = sorted(file for file in given.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not files:
            raise SetupError(
                f"folder {path!r} has no file that ends in {', '.join(SUFFIXES)}; name the files themselves"
            )
        if not any(file.stat().st_size for file in files):
            raise SetupError(f"folder {path!r} has only empty files, {len(files)} of them; give files with records")
        return files
    if given.exists():
        if given.is_file() and not given.stat().st_size:
            raise SetupError(f"file {path!r} is empty; give a file with at least one record")
        return [given]
    matched = sorted(Path(match) for match in glob.glob(str(given), recursive=True) if Path(match).is_file())
    if not matched:
        raise SetupError(f"path {path!r} does not exist; give a file, a folder or a glob pattern")
    return matched


class Entry(NamedTuple):
    """One line as read: a row, or the reason why it is none.

    Attributes:
        where: File and line.
        raw: Its bytes; of a line that is too long the first ones.
        digest: sha256 of all its bytes.
        row: What it says.
        reason: Why it cannot be understood; empty where it can.
        position: The cursor after it; None where the line may still be growing.
        done: Bytes of the file that have been read.
    """

    where: str
    raw: bytes
    digest: str
    row: Row | None
    reason: str
    position: dict[str, Any] | None
    done: int


class LogFile:
    """One file of a source, with a cursor of its own.

    Attributes:
        skipped: After `read`: rows before the position that it went on from.
    """

    def __init__(self, path: Path, spec: JSONL) -> None:
        self.path, self.spec = path, spec
        self.cursor = f"{spec.name}:{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
        self.size = path.stat().st_size
        self.skipped = 0

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The lines after `position`, or all where the file does not begin as it did then.

        Raises:
            SetupError: The file cannot be opened.
        """
        try:
            with self.path.open("rb") as file:
                yield from self._entries(file, position)
        except (PermissionError, IsADirectoryError) as problem:
            raise SetupError(
                f"file {str(self.path)!r} cannot be read ({problem.strerror}); check its rights"
            ) from problem

    def _entries(self, file: BinaryIO, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        stream = _text(file)
        before = hashlib.sha256()
        offset = number = rows = 0
        if position and position["workload"] == self.spec.workload and _goes_on(stream, position, before):
            offset, number, rows = position["offset"], position["line"], position["rows"]
            self.skipped = rows
        else:
            file.seek(0)
            stream, before = _text(file), hashlib.sha256()
        for line in _lines(stream, before):
            number += 1
            offset += line.size
            if line.raw.strip() or line.problem:
                rows += 1
                row, reason = (None, line.problem) if line.problem else self._parse(line.raw, written)
                reached = {"offset": offset, "line": number, "rows": rows, "digest": before.hexdigest()}
                after = {**reached, "workload": self.spec.workload} if line.ended else None
                yield Entry(f"{self.path}:{number}", line.raw, line.digest, row, reason, after, file.tell())

    def _parse(self, raw: bytes, written: datetime) -> tuple[Row | None, str]:
        try:
            record = json.loads(raw, parse_constant=_refuse, parse_float=_finite)
            return parse(record, source=self.spec.name, at=written, workload=self.spec.workload), ""
        except Rejected as problem:
            return None, str(problem)
        except RecursionError:
            return None, "no JSON: nested too deeply"
        except ValueError as problem:
            return None, f"no JSON: {problem}"


def _refuse(constant: str) -> Any:
    raise Rejected(f"no JSON: {constant} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Rejected(f"no JSON: {text[:40]} is no finite number")
    return value


class Line(NamedTuple):
    """A line without its newline: `size` bytes in the file with it, `ended` if it has one, `problem` if unreadable."""

    raw: bytes
    size: int
    digest: str
    ended: bool
    problem: str


def _text(file: BinaryIO) -> Any:
    """The file, or what is gzipped in it; told by its first bytes, whatever its name."""
    magic = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file


def _goes_on(stream: Any, position: Mapping[str, Any], before: Any) -> bool:
    """Whether the first `offset` bytes are still those that were read; `before` has taken them in."""
    left = int(position["offset"])
    try:
        while left and (block := stream.read(min(BLOCK, left))):
            before.update(block)
            left -= len(block)
    except (OSError, EOFError, zlib.error):
        return False
    return not left and before.hexdigest() == position["digest"]


def _blocks(stream: Any) -> Iterator[bytes | Exception]:
    """Blocks of text, and last, if a gzip stream breaks off, why."""
    read = stream.read1 if isinstance(stream, gzip.GzipFile) else stream.read
    try:
        while block := read(BLOCK):
            yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        yield problem


def _lines(stream: Any, before: Any) -> Iterator[Line]:
    """Lines in order; `before` takes in every byte of a line before the line is given out."""
    kept, size, whole = bytearray(), 0, hashlib.sha256()
    broken: Exception | None = None

    def line(ended: bool) -> Line:
        problem = f"a line of {size} bytes is over {LONGEST_LINE}; its first are kept" if size > LONGEST_LINE else ""
        return Line(bytes(kept), size + ended, whole.hexdigest(), ended, problem)

    for block in _blocks(stream):
        if isinstance(block, Exception):
            broken = block
            break
        *ended, rest = block.split(b"\n")
        for piece, end in [(piece, True) for piece in ended] + [(rest, False)]:
            size += len(piece)
            kept += piece
            if size > LONGEST_LINE:
                del kept[KEPT_OF_LONGER:]
            whole.update(piece)
            before.update(piece + b"\n" if end else piece)
            if end:
                yield line(True)
                kept, size, whole = bytearray(), 0, hashlib.sha256()
    if broken is not None:
        why = f"the gzip stream breaks off here ({broken}); what came before is stored"
        yield Line(bytes(kept[:KEPT_OF_LONGER]), size, before.hexdigest(), False, why)
    elif size:
        yield line(False)
