"""Memory: how much more of it a process holds at the most, from before an engine is loaded until it has answered.

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
        with contextlib.suppress(OSError, AttributeError):
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")
            self.before = _kilobytes("VmRSS")

    def report(self) -> dict[str, int | None]:
        """Bytes at the most, above where it was."""
        peak = _kilobytes("VmHWM") if self.before is not None else None
        known = self.before is not None and peak is not None
        return {"memory_bytes": 1024 * max(0, (peak or 0) - (self.before or 0)) if known else None}


def _kilobytes(name: str) -> int | None:
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE):
            return int(found[1])
    return None
