"""A large file is read ahead: one process finds and understands its records while another stores them.

Understanding a record takes about as long as storing it, and where a second core is idle both go on at once. The
process is one of ours with the same settings; batches come over a pipe, which holds it back when it is a batch ahead,
and whose end is also its own: it goes when the one that stores is gone, however that came about.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from infra.settings import SetupError
from tasks.halves import half
from tasks.sources.files import LogFile
from tasks.sources.part import Entry, Part

LARGE = 32 << 20  # bytes; below, the process would start for nothing
BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20


def batches(part: Part, position: Mapping[str, Any] | None) -> Iterator[list[Entry]]:
    """A part's entries after its position, in batches bounded in rows and bytes; read ahead where that is worth it.

    Raises:
        SetupError: The part cannot be read.
    """
    if isinstance(part, LogFile) and part.size > LARGE and len(os.sched_getaffinity(0)) > 1:
        yield from _from_child(part, position)
    else:
        yield from grouped(part, position)


def grouped(part: Part, position: Mapping[str, Any] | None) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in part.read(position):
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += len(entry.raw)
    if batch:
        yield [*batch[:-1], half(batch[-1])] if isinstance(part, LogFile) else batch


def _from_child(part: LogFile, position: Mapping[str, Any] | None) -> Iterator[list[Entry]]:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    command = [sys.executable, "-c", "from tasks.ahead import main; main()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=path)
    assert child.stdin is not None and child.stdout is not None
    try:
        with child.stdin as asked:
            pickle.dump((part.spec, part.path, position), asked)
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
            if not batch:
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
    spec, path, position = pickle.load(sys.stdin.buffer)
    try:
        (part,) = [one for one in spec.parts() if one.path == path]
        for batch in grouped(part, position):
            pickle.dump((part.skipped, batch), out, pickle.HIGHEST_PROTOCOL)
            out.flush()
        pickle.dump((part.skipped, []), out)
    except BrokenPipeError:
        os._exit(0)
    except Exception as problem:
        pickle.dump(problem, out)
    out.flush()
