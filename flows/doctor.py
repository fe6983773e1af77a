"""Everything that this needs, looked at: what is wrong, and the command that mends it."""

import os
import sys
from typing import Annotated, Any

from pydantic import Field

from infra.settings import SetupError

MARKS = {"ok": ("ok     ", "32"), "warning": ("warning", "33"), "wrong": ("WRONG  ", "31")}


def doctor(
    check: Annotated[str | None, Field(description="Only this one: settings, disk, database ...; default: all")] = None,
) -> dict[str, Any]:
    """Check settings, disk, database, Prefect, MLflow, clocks, GPU, models and engines; exit code 1 if one is wrong."""
    from tasks.doctor import CHECKS
    from tasks.doctor.examine import examine

    if check is not None and check not in CHECKS:
        raise SetupError(f"check {check!r} does not exist; known are {', '.join(CHECKS)}")
    return examine(check)


def exit_code(found: dict[str, Any]) -> int:
    return 0 if found["ok"] else 1


def render(found: dict[str, Any]) -> str:
    """A line a finding, and below it the command that mends it."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = []
    for finding in found["findings"]:
        mark, colour = MARKS[finding["level"]]
        shown = f"\x1b[{colour}m{mark}\x1b[0m" if coloured else mark
        lines.append(f"{shown}  {finding['check']:<9}  {finding['said']}")
        if finding["mend"]:
            lines.append(f"{'':>20}→ {finding['mend']}")
    counts = [f"{sum(f['level'] == level for f in found['findings'])} {level}" for level in MARKS]
    return "\n".join([*lines, ", ".join(counts)])
