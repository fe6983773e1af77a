"""Secrets of the home: nobody but their owner may read them."""

import stat
from collections.abc import Iterator

from infra.settings import settings
from tasks.doctor.finding import Level


def check() -> Iterator[tuple[Level, str, str]]:
    home = settings().home
    secret = [*home.glob("*.key"), *home.glob("spool"), *home.glob("spool/*.jsonl")]
    for file in secret:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            yield "wrong", f"{file} can be read by others (mode {mode:o})", f"chmod go= '{file}'"
    for key in home.glob("*.key"):
        try:
            bytes.fromhex(key.read_text())
        except (OSError, ValueError) as problem:
            yield "wrong", f"{key} is no key ({type(problem).__name__})", f"restore '{key}' from a backup"
    if secret:
        yield "ok", f"{len(secret)} secret files, looked at", ""
    else:
        yield "ok", "no secrets in the home yet", ""
