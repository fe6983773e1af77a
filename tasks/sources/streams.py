"""Streamed answers as they went over the wire, a `chat.completion.chunk` a line, put together again.

Lines are bare chunks or server-sent events (`data: {...}`, `data: [DONE]`, comments), of several streams at once, told
apart by the `id` of their chunks ("API Reference", The chat completion chunk object; WHATWG HTML, section Server-sent
events). A chunk does not say what was asked. The log has to, in one of two ways:

    {"request": {...}, "chunk": {...}}         with the chunk, on one line of the stream or on all; the id, timestamp,
                                               workload_id and so on of a record may stand there too
    {"id": "chatcmpl-1", "request": {...}}     on a line of its own, with the id of the chunks

A stream ends with the `finish_reason` of all its choices; its usage comes after that, on a chunk without choices, and
then `[DONE]`: it is closed by either, or when it has been silent for `RESTED` lines. A file is cut into blocks of whole
streams, `HELD` or more of them. What is not closed then waits for the next block, and the cursor with it: it never
stands within a stream. One that is open at the end of the file lies in quarantine, under its first line, and leaves it
when the file has grown and the rest is there. Those that were given up long ago wait in at most `LONGEST_OPEN` bytes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from infra.database.jsontext import Rejected, loads
from tasks.sources.files import Line, lines

CHUNK = "chat.completion.chunk"
HELD = 100
RESTED = 1000
LONGEST_OPEN = 64 << 20
ENVELOPE = ("id", "timestamp", "workload_id", "client_id", "conversation_id", "latency_ms", "metadata")


class Stream:
    """The lines of one stream, and which of its choices have ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[bytes] = []
        self.records: list[dict[str, Any]] = []
        self.ended: dict[int, bool] = {}
        self.asked = self.closed = False
        self.last = 0

    @property
    def open(self) -> bool:
        return bool(self.ended or self.asked) and not self.finished

    @property
    def finished(self) -> bool:
        return bool(self.ended) and all(self.ended.values())

    def takes(self, parts: list[dict[str, Any]]) -> bool:
        """Whether a chunk with these choices can be of this stream, and does not begin another of the same name."""
        return not self.finished or not parts or any(part.get("index", 0) not in self.ended for part in parts)

    def note(self, record: dict[str, Any], number: int) -> None:
        """What the `number`th line says of how far the stream is."""
        chunk = chunk_in(record)
        for part in choices(chunk):
            index = part.get("index", 0)
            self.ended[index] = self.ended.get(index, False) or bool(part.get("finish_reason"))
        self.asked = self.asked or bool(record.get("request"))
        self.closed = self.closed or (self.finished and bool(chunk and chunk.get("usage")))
        self.last = number

    def record(self) -> dict[str, Any] | None:
        """The call; None where all there is are chunks that say nothing, as of usage that came late.

        Raises:
            Rejected: It breaks off, or its request is nowhere.
        """
        chunks = [chunk for record in self.records if (chunk := chunk_in(record)) is not None]
        around = [record for record in self.records if chunk_in(record) is not record]
        request = next((record["request"] for record in around if record.get("request")), None)
        if not self.ended and request is None:
            return None
        if not self.ended:
            raise Rejected(f"the request {self.name[:80]!r} has no answer; no chunk has its id")
        if not self.name:
            raise Rejected("a streamed chunk has no id to tell its stream by")
        if not self.finished:
            raise Rejected(f"stream {self.name[:80]!r} breaks off: it has no finish_reason up to here")
        if request is None:
            raise Rejected(
                f"the request of stream {self.name[:80]!r} is nowhere; log it with the chunks "
                '({"request", "chunk"}) or on a line of its own ({"id", "request"})'
            )
        envelope: dict[str, Any] = {}
        for record in around:
            envelope = {**{key: record[key] for key in ENVELOPE if key in record}, **envelope}
        return {**envelope, "request": request, "response": chunks}


class Streams:
    """Which lines are of one stream. A name that comes again after its stream has finished is that of another."""

    def __init__(self) -> None:
        self.by_name: dict[str, Stream] = {}

    def of(self, record: dict[str, Any], number: int = 0) -> Stream:
        """The stream of the `number`th line, which may begin with it."""
        name, parts = name_of(record), choices(chunk_in(record))
        stream = self.by_name.get(name)
        if stream is None or not stream.takes(parts):
            stream = self.by_name[name] = Stream(name)
        stream.note(record, number)
        return stream


class Held(NamedTuple):
    """A line that waits for its block."""

    raw: bytes
    size: int
    stream: Stream | None


def is_streamed(head: bytes) -> bool:
    """Whether a file that begins with `head` is one of chunks."""
    if CHUNK.encode() not in head:
        return False
    return any(chunk_in(_read(line)) is not None for line in head.split(b"\n"))


def blocks(stream: Any, before: Any) -> Iterator[Line]:
    """A `Cut`: lines with whole streams in them."""
    held: list[Held] = []
    streams = Streams()
    newest: Stream | None = None
    size = ready = number = 0
    ended = True
    for line in lines(stream, before):
        if line.problem:
            yield line._replace(ended=line.ended and not held)
            continue
        said, number, ended = _read(line.raw), number + 1, line.ended
        mine = streams.of(said, number) if of_stream(said) else None
        held.append(Held(line.raw, line.size, mine))
        size += line.size
        newest = mine or newest
        if newest and newest.finished and line.raw.rstrip().endswith(b"[DONE]"):
            newest.closed = True
        closing = newest.closed if newest else True
        ready += closing or (mine is not None and mine.finished)
        if not ended or (ready < (HELD if closing else 4 * HELD) and size < LONGEST_OPEN):
            continue
        kept = _kept(held, number, rest=closing, full=size >= LONGEST_OPEN)
        out = [each for each in held if each.stream not in kept]
        held = [each for each in held if each.stream in kept]
        size, ready = sum(each.size for each in held), 0
        streams.by_name = {name: each for name, each in streams.by_name.items() if each in kept}
        if out:
            yield _block(out, ended=not held)
    if held:
        yield _block(held, ended=ended and not _kept(held, number, rest=False, full=False))


def _kept(held: list[Held], number: int, rest: bool, full: bool) -> set[Stream | None]:
    """The streams that wait: the open ones, and with `rest` those that may yet say their usage.

    Where the lines that are held are `full` of streams that say no more, only those that said something lately.
    """
    there = {each.stream for each in (held[len(held) // 2 :] if full else held) if each.stream is not None}
    return {
        stream for stream in there
        if stream.open or (rest and stream.finished and not stream.closed and number - stream.last < RESTED)
    }  # fmt: skip


def _block(held: list[Held], ended: bool) -> Line:
    raw = b"\n".join(each.raw for each in held)
    size = sum(each.size for each in held)
    return Line(raw, size, "", ended, "", len(held))


def taken_apart(block: bytes) -> Iterator[tuple[bytes, Stream | None]]:
    """The streams in a block with their lines, and the other lines, in the order in which they begin."""
    streams = Streams()
    found: list[bytes | Stream] = []
    for line in block.split(b"\n"):
        said = _read(line)
        if of_stream(said):
            stream = streams.of(said)
            if not stream.lines:
                found.append(stream)
            stream.lines.append(line)
            stream.records.append(said)
        elif payload(line):
            found.append(line)
    for each in found:
        yield (b"\n".join(each.lines), each) if isinstance(each, Stream) else (each, None)


def payload(line: bytes) -> bytes:
    """The JSON of a line; empty where it is blank, a comment, or the end of a stream of events."""
    text = line.strip()
    if text.startswith(b"data:"):
        text = text[5:].strip()
    return b"" if text.startswith(b":") or text == b"[DONE]" else text


def _read(line: bytes) -> Any:
    try:
        return loads(payload(line))
    except Rejected:
        return None


def chunk_in(record: Any) -> dict[str, Any] | None:
    """The chunk that a line is, or that it has under `chunk`."""
    if not isinstance(record, dict):
        return None
    found = record.get("chunk", record)
    # Azure begins with one that has an empty object and id.
    known = isinstance(found, dict) and found.get("object") in (CHUNK, "") and "choices" in found
    return found if known else None


def choices(chunk: dict[str, Any] | None) -> list[dict[str, Any]]:
    parts = chunk.get("choices") if chunk else None
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def of_stream(record: Any) -> bool:
    """Whether a line has a chunk, or the request of a stream."""
    if chunk_in(record) is not None:
        return True
    return isinstance(record, dict) and "request" in record and "response" not in record and bool(record.get("id"))


def name_of(record: dict[str, Any]) -> str:
    """The id of the stream: of the line, or of the chunk in it."""
    chunk = chunk_in(record) or {}
    return str(record.get("id") or chunk.get("id") or "")
