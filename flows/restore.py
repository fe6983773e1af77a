"""The way back from a backup."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import tasks.backup


def restore(path: Annotated[Path, Field(description="A file that `flywheel backup` wrote")]) -> dict[str, Any]:
    """Make an empty home, and an empty database, what the backup was made of; all or nothing."""
    return tasks.backup.restore(path)


def render(made: dict[str, Any]) -> str:
    """What is there now, and what to do next."""
    said = f"{made['home']} is what it was at {made['made']}: {made['files']:,} files, database {made['database']}."
    return "\n".join([said, *(f"- {note}" for note in made["notes"]), "Next: flywheel doctor"])
