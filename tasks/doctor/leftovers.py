"""What crashed runs and full databases left behind: half-made folders, and records that wait in the spool."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from infra.gateway import spool
from infra.settings import settings
from tasks.doctor.finding import Level

OLD = 86400.0  # seconds; what is younger may still be under way
NAMES = ("*.partial*", "package-*", "*/*.partial*", "*/*/*.partial*")


def check() -> Iterator[tuple[Level, str, str]]:
    home = settings().home
    waiting = spool.files(spool.folder())
    if waiting:
        size = sum(map(spool.size_of, waiting))
        yield (
            "warning",
            f"{size:,} bytes in the spool wait for the database, since {waiting[0].stem}",
            "flywheel ingest gateway",
        )
    left = sorted(
        {path for name in NAMES for path in home.glob(name)} | set(home.parent.glob(f".{home.name}.restoring-*"))
    )
    for path in left:
        if time.time() - path.stat().st_mtime > OLD:
            yield "warning", f"{path} was left half-made by a run that died", f"rm -r '{path}'"
    if up_is_stale(home / "up.json"):
        yield "warning", f"{home / 'up.json'} names a `flywheel up` that is gone", f"rm '{home / 'up.json'}'"
    if not waiting:
        yield "ok", "the spool is empty", ""


def up_is_stale(file: Path) -> bool:
    """Whether the file of addresses is there, and who wrote it is not."""
    from infra.servers import running

    return os.path.exists(file) and not running()
