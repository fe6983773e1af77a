"""Where pages are, and how they get there: whole or not at all."""

import os
from pathlib import Path

from infra.settings import settings


def place_of(name: str) -> Path:
    return settings().home / "reports" / f"{name}.html"


def write(path: Path, text: str) -> None:
    """To be read by its owner alone, for it quotes traffic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.touch(0o600)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
