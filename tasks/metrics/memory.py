"""Memory: how much more of it this process holds at the most, from before an engine is loaded until it has answered.

An engine that runs in a process of its own is counted as long as that process is there, and whole: its Python, too.
Linux remembers a process's peak of resident memory (`VmHWM`) and can be told to forget it (`clear_refs`); elsewhere it
is absent. What earlier engines freed is given back to the system first, or it would be taken again unseen.
"""

import contextlib
import ctypes
import gc
import re
from pathlib import Path

PROCESS = Path("/proc/self")


class Memory:
    """Counts from where it is made."""

    def __init__(self) -> None:
        self.before: int | None = None
        self.others = _children()
        with contextlib.suppress(OSError, AttributeError):
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")
            self.before = _kilobytes(PROCESS, "VmRSS")

    def report(self) -> dict[str, int | None]:
        """Bytes at the most, above where it was."""
        peak = _kilobytes(PROCESS, "VmHWM") if self.before is not None else None
        if self.before is None or peak is None:
            return {"memory_bytes": None}
        children = sum(_kilobytes(child, "VmHWM") or 0 for child in _children() - self.others)
        return {"memory_bytes": 1024 * (max(0, peak - self.before) + children)}


def _children() -> set[Path]:
    """The processes that this one has started and that are there."""
    with contextlib.suppress(OSError):
        lists = (PROCESS / "task").glob("*/children")
        return {PROCESS.parent / number for file in lists for number in file.read_text().split()}
    return set()


def _kilobytes(process: Path, name: str) -> int | None:
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name}:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE):
            return int(found[1])
    return None
