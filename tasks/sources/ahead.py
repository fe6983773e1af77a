"""A large file is read ahead: one process finds and understands its records while another stores them.

Understanding a record takes about as long as storing it, and where a second core is idle both go on at once. The
process is one of ours with the same settings; batches come over a pipe, which holds it back when it is two batches
ahead, and whose end is also its own: it goes when the one that stores is gone, however that came about.

It does all that needs no database, and sends no more than is stored: rows are redacted there and their JSON is written,
which makes a batch a fifth of the work to send that nested objects would be.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from infra.database.store import Found, ready
from infra.privacy.redaction import Redactor
from infra.settings import SetupError
from tasks.sources.files import Files, LogFile
from tasks.sources.halves import half
from tasks.sources.part import Entry, Part

LARGE = 32 << 20  # bytes; below, the process would start for nothing
BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20


class Batch(NamedTuple):
    """Records that are stored in one transaction, with the cursor behind them.

    Attributes:
        position: The cursor; None where it cannot move, for what these were cut from has more to come.
        done: How much of the part's `size` has been read.
    """

    records: Sequence[Found]
    position: dict[str, Any] | None
    done: int


def batches(part: Part, position: Mapping[str, Any] | None, redact: Redactor) -> Iterator[Batch]:
    """A part's records after its position, in batches bounded in rows and bytes; read ahead where that is worth it.

    Raises:
        SetupError: The part cannot be read.
    """
    if isinstance(part, LogFile) and part.size > LARGE and len(os.sched_getaffinity(0)) > 1:
        yield from _from_child(part, position, redact)
    else:
        yield from _grouped(part, position)


def _grouped(part: Part, position: Mapping[str, Any] | None) -> Iterator[Batch]:
    entries: list[Entry] = []
    size = 0
    for entry in part.read(position):
        if len(entries) == BATCH_ROWS or size > BATCH_BYTES:
            yield _batch(entries)
            entries, size = [], 0
        entries.append(entry)
        size += len(entry.raw)
    if entries:
        yield _batch([*entries[:-1], half(entries[-1])] if isinstance(part, LogFile) else entries)


def _batch(entries: list[Entry]) -> Batch:
    reached = next((entry.position for entry in reversed(entries) if entry.position), None)
    return Batch(entries, reached, entries[-1].done)


def _from_child(part: LogFile, position: Mapping[str, Any] | None, redact: Redactor) -> Iterator[Batch]:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    # -P: not what lies where it is run
    command = [sys.executable, "-P", "-c", "from tasks.sources.ahead import main; main()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=path)
    assert child.stdin is not None and child.stdout is not None
    try:
        with child.stdin as asked:
            pickle.dump((part.spec, part.path, position, redact), asked)
        while True:
            try:
                said = pickle.load(child.stdout)  # from our own process, nobody else's
            except EOFError:
                raise SetupError(
                    f"the process that read {part.label!r} ended with {child.wait()}; what it gave is stored, run again"
                ) from None
            if isinstance(said, Exception):
                raise said
            part.skipped, batch = said
            if batch is None:
                return
            yield batch
    finally:
        child.stdout.close()
        child.wait()


def main() -> None:
    """Read the part that standard input names, and give its batches to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that stores
    out = sys.stdout.buffer
    sys.stdout = sys.stderr

    def send(said: bytes) -> None:
        out.write(said)
        out.flush()

    asked = pickle.load(sys.stdin.buffer)
    try:
        # A batch goes out while the next is read: the one that stores takes longer over some than over others.
        with ThreadPoolExecutor(1) as beside:
            sent = beside.submit(send, b"")
            for said in _said(*asked):
                batch = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
                sent.result()
                sent = beside.submit(send, batch)
            sent.result()
    except BrokenPipeError:
        os._exit(0)


def _said(spec: Files, path: Path, position: Mapping[str, Any] | None, redact: Redactor) -> Iterator[Any]:
    """Each batch with the rows that were skipped before the first, and last None, or the problem."""
    try:
        (part,) = [one for one in spec.parts() if one.path == path]
        with frozen():
            for batch in _grouped(part, position):
                yield part.skipped, batch._replace(records=[ready(entry, redact) for entry in batch.records])
        yield part.skipped, None
    except Exception as problem:
        yield problem


@contextmanager
def frozen() -> Iterator[None]:
    """Spare the garbage collector what is there already, which millions of new objects make it walk again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
