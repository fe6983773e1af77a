"""All checks, one after the other, each by itself."""

from typing import Any

from tasks.doctor import CHECKS
from tasks.doctor.finding import run

SECONDS = 60.0


def examine(only: str | None = None) -> dict[str, Any]:
    """The findings of all checks, or of one; `ok` is whether nothing is wrong."""
    findings = [
        finding for name, check in CHECKS.items() if only in (None, name) for finding in run(name, check, SECONDS)
    ]
    return {"ok": all(f.level != "wrong" for f in findings), "findings": [f._asdict() for f in findings]}
