"""A secret that lives in the home, made when it is first asked for, and readable by its owner alone."""

import contextlib
import os
import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile

from infra.settings import SetupError

BYTES = 32


def home_key(home: Path, name: str, setting: str) -> bytes:
    """The secret of this name, BYTES long. Of two processes that make one at once, one's counts for both.

    Args:
        setting: What takes its place, for the message.

    Raises:
        SetupError: The file holds something else.
    """
    file = home / f"{name}.key"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Written whole under another name (which only its owner may read), then given its name, which can happen once.
        with NamedTemporaryFile("w", dir=home, prefix=f".{name}-") as made:
            made.write(secrets.token_hex(BYTES))
            made.flush()
            os.fsync(made.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(made.name, file)
    try:
        key = bytes.fromhex(file.read_text())
    except (OSError, ValueError) as problem:
        raise SetupError(f"{str(file)!r} is no {name} key: {problem}; remove it, or set {setting}") from problem
    if len(key) != BYTES:
        raise SetupError(f"{str(file)!r} has {len(key)} bytes, not {BYTES}; remove it, or set {setting}")
    return key
