"""Files of records, plain or gzipped: found, cut into records, and read on from where they were left.

Files are read in blocks, so that neither a huge file nor a huge line needs memory. The cursor of a file is a byte
offset in its text and the digest of what lies before it: a log that has grown is read from there, a file that was
changed from its start.
"""

import glob
import gzip
import hashlib
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from infra.database.records import Parsed
from infra.settings import SetupError
from tasks.sources.part import Entry

LONGEST_LINE = 16 << 20
LONGEST_FILE = 256 << 20  # of one that is a single document
KEPT_OF_LONGER = 64 << 10
BLOCK = 256 << 10
HEAD = 1 << 20  # enough for the first line of a log whose prompts are long
# What logrotate and Python's handlers put behind a log's name: a number, or a date and time.
ROTATED = r"(?:[.-]\d[\d.:T_-]*)?(?:\.gz)?"


Cut = Callable[[Any, Any], Iterator["Line"]]
"""(stream, sha256 of what was read) -> the pieces that follow; the hash takes in a piece before it is given out."""

Parse = Callable[[bytes, datetime], Iterator[Parsed]]
"""(piece, time of the records that have none) -> the records in it."""


class Files(ABC):
    """A source of files: which they are, how each is cut, and what is in a piece.

    Attributes:
        suffixes: Of what is read in a folder, as it is, rotated or gzipped: `app.jsonl.1`, `app.jsonl-20261124.gz`.
        paths: Files, folders or glob patterns.
        name: Of the kind of source.
        workload: Of records that name none.
    """

    suffixes: ClassVar[tuple[str, ...]]
    paths: tuple[str, ...]
    name: str
    workload: str

    def parts(self) -> list["LogFile"]:
        """The files, each once.

        Raises:
            SetupError: A path does not exist, is empty, or is a folder without such files.
        """
        return [LogFile(file, self, self.parse) for file in self.files()]

    def files(self) -> list[Path]:
        """Where they are; raises as `parts`."""
        return list({file.resolve(): None for path in self.paths for file in _files(path, self.suffixes)})

    @abstractmethod
    def cut(self, head: bytes) -> Cut:
        """How a file that begins with `head` is cut into pieces."""

    @abstractmethod
    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records in a piece; `at` is the time of those that have none."""

    def identity(self, raw: bytes) -> bytes:
        """What of a record's bytes stays the same when more of it is written."""
        return raw


def _files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_dir():
        fits = re.compile(rf".*(?:{'|'.join(map(re.escape, suffixes))}){ROTATED}", re.DOTALL)
        files = sorted(file for file in given.rglob("*") if fits.fullmatch(file.name) and file.is_file())
        if not files:
            raise SetupError(
                f"folder {path!r} has no file that ends in {', '.join(suffixes)}; name the files themselves"
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


class LogFile:
    """One file of a source: a `Part`. Read from its start again where a record of it lies in quarantine."""

    def __init__(self, path: Path, spec: Files, parse: Parse) -> None:
        self.path, self.spec, self.parse = path, spec, parse
        self.kind, self.label = spec.name, str(path)
        self.cursor = f"{spec.name}:{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
        self.size = path.stat().st_size
        self.skipped = 0

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The records after `position`, or all where the file does not begin as it did then.

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

    def _fits(self, position: Mapping[str, Any]) -> bool:
        """Whether what was read then would be read the same now."""
        return not position.get("quarantined") and bool(position["workload"] == self.spec.workload)

    def _entries(self, file: BinaryIO, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        cut = self.spec.cut(head(text(file)))
        file.seek(0)
        stream, before = text(file), hashlib.sha256()
        offset = number = rows = 0
        if position and self._fits(position) and _goes_on(stream, position, before):
            offset, number, rows = position["offset"], position["line"], position["rows"]
            self.skipped = rows
        else:
            file.seek(0)
            stream, before = text(file), hashlib.sha256()
        for line in cut(stream, before):
            number += line.lines
            offset += line.size
            if not line.raw.strip() and not line.problem:
                continue
            where = f"{self.label}:{number}"
            parsed = [Parsed(line.raw, None, line.problem)] if line.problem else list(self.parse(line.raw, written))
            last = rows + len(parsed)
            for record in parsed:
                rows += 1
                same = record.raw is line.raw
                digest = line.digest if same else hashlib.sha256(self.spec.identity(record.raw)).hexdigest()
                after = None
                if rows == last and line.ended:
                    after = {
                        "offset": offset, "line": number, "rows": rows, "digest": before.hexdigest(),
                        "workload": self.spec.workload,
                    }  # fmt: skip
                yield Entry(where, record.raw, digest, record.row, record.reason, after, file.tell())


class Line(NamedTuple):
    """A line without its newline: `size` bytes in the file with it, `ended` if it has one, `problem` if unreadable.

    Files of other pieces than lines give those out as lines; `lines` is how many it really is. `digest` is empty where
    `raw` is all of it.
    """

    raw: bytes
    size: int
    digest: str
    ended: bool
    problem: str
    lines: int = 1


def text(file: BinaryIO) -> Any:
    """The file, or what is gzipped in it; told by its first bytes, whatever its name."""
    magic = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file


def head(stream: Any) -> bytes:
    """The first bytes; none where they cannot be read."""
    try:
        return bytes(stream.read(HEAD))
    except (OSError, EOFError, zlib.error):
        return b""


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


def lines(stream: Any, before: Any) -> Iterator[Line]:
    """A `Cut`: lines in order; `before` takes in every byte of a line before the line is given out."""
    kept, size, longer = bytearray(), 0, None
    broken: Exception | None = None

    def line(ended: bool) -> Line:
        if longer is None:
            return Line(bytes(kept), size + ended, "", ended, "")
        problem = f"a line of {size} bytes is over {LONGEST_LINE}; its first are kept"
        return Line(bytes(kept), size + ended, longer.hexdigest(), ended, problem)

    for block in _blocks(stream):
        if isinstance(block, Exception):
            broken = block
            break
        *ended, rest = block.split(b"\n")
        for piece, end in [(piece, True) for piece in ended] + [(rest, False)]:
            size += len(piece)
            kept += piece
            if longer is not None:
                longer.update(piece)
            elif size > LONGEST_LINE:
                longer = hashlib.sha256(kept)
            if longer is not None:
                del kept[KEPT_OF_LONGER:]
            before.update(piece + b"\n" if end else piece)
            if end:
                yield line(True)
                kept, size, longer = bytearray(), 0, None
    if broken is not None:
        yield Line(bytes(kept[:KEPT_OF_LONGER]), size, before.hexdigest(), False, _broken(broken))
    elif size:
        yield line(False)


def whole(stream: Any, before: Any) -> Iterator[Line]:
    """A `Cut`: the file as one piece."""
    raw = bytearray()
    for block in _blocks(stream):
        if isinstance(block, Exception):
            yield Line(bytes(raw[:KEPT_OF_LONGER]), len(raw), before.hexdigest(), False, _broken(block))
            return
        before.update(block)
        raw += block
        if len(raw) > LONGEST_FILE:
            problem = _too_long("file", LONGEST_FILE)
            yield Line(bytes(raw[:KEPT_OF_LONGER]), len(raw), before.hexdigest(), False, problem)
            return
    if raw:
        yield Line(bytes(raw), len(raw), "", True, "")


def framed(stream: Any, before: Any) -> Iterator[Line]:
    """A `Cut`: pieces with their length in front, 4 bytes, the most significant first."""
    try:
        while head := stream.read(4):
            size = int.from_bytes(head, "big")
            if size > LONGEST_LINE:
                yield Line(head, 4, "", False, _too_long("message", LONGEST_LINE))
                return
            raw = stream.read(size)
            before.update(head + raw)
            short = len(head) < 4 or len(raw) < size
            problem = "the file breaks off within a message; what came before is stored" if short else ""
            yield Line(raw, 4 + size, "", not short, problem)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        yield Line(b"", 0, before.hexdigest(), False, _broken(problem))


def _broken(problem: Exception) -> str:
    return f"the gzip stream breaks off here ({problem}); what came before is stored"


def _too_long(what: str, limit: int) -> str:
    return f"a {what} is over {limit} bytes; its first are kept"
