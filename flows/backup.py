"""One file with everything that cannot be made again."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import tasks.backup


def backup(
    path: Annotated[Path, Field(description="The file to write, outside of the home: FILE.tar.gz")],
) -> dict[str, Any]:
    """Write database, registry, artifacts and keys to one archive, while all goes on, and read it back."""
    return tasks.backup.backup(path)


def render(made: dict[str, Any]) -> str:
    """Where it is, and what to know of it."""
    said = f"{made['path']}: {made['files']:,} files in {made['bytes'] / 1e6:,.1f} MB, every one read back."
    return "\n".join(
        [said, *(f"- {note}" for note in made["notes"]), f"Back: FLYWHEEL_HOME=NEW flywheel restore {made['path']}"]
    )
