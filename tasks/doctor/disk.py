"""Room for a turn of the wheel: what the last one left, twice over, since it is made before the old one may go."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from infra.settings import settings
from tasks.doctor.finding import Level

LEAST = 1 << 30
MADE = ("datasets", "students", "candidates", "scorecards")


def check() -> Iterator[tuple[Level, str, str]]:
    home = settings().home
    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        yield "wrong", f"{place} cannot be written to", f"chown $USER '{place}'"
    usage = shutil.disk_usage(place)
    needed = max(LEAST, 2 * sum(newest(home / name) for name in MADE))
    said = f"{usage.free / 1e9:.1f} GB free for {home}; a turn takes up to {needed / 1e9:.1f}"
    if usage.free < needed:
        yield (
            "wrong" if usage.free < needed / 4 else "warning",
            said,
            "flywheel prune --before DATE, or FLYWHEEL_HOME on another disk",
        )
    else:
        yield "ok", said, ""
    if (inodes := os.statvfs(place)).f_files and inodes.f_favail < 1000:
        yield "wrong", f"{inodes.f_favail} files more can be made below {place}", "delete small files there"


def newest(folder: Path) -> int:
    """Bytes of what was made last below a folder."""
    made = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    last = max(made, key=lambda entry: entry.stat().st_mtime, default=None)
    return sum(file.stat().st_size for file in last.rglob("*") if file.is_file()) if last else 0
