"""Verdict → report: a turn's page is written to the home, and a copy left with its run in MLflow."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra import reports
from infra.settings import SetupError, settings
from tasks.report.story import because, figures, headline
from tasks.report.turn import Turn, find, turn_of
from tasks.report.whole import html

Progress = Callable[[int, int, str], None]


def report(
    verdict_id: str | None = None,
    workload: str | None = None,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Write the report of the turn that a verdict belongs to; without one, of the last turn (of a workload).

    Returns:
        workload, verdict (the turn's first), outcome, path, headline, why, figures (as text), address (of its page in
        MLflow, if a server shows it) and problem (why there is no copy in MLflow, if there is none).

    Raises:
        SetupError: There is no such verdict.
    """
    turn = turn_of(find(verdict_id, workload))
    written = html(turn)
    path = place_of(turn.id)
    write(path, written)
    address, problem = None, ""
    try:
        runs = reports.put(written, turn.id, turn.workload, turn.outcome, turn.runs)
        mine = turn.verdict.mlflow_run_id
        address = reports.address(mine if mine in runs else runs[0])
    except SetupError as missing:
        problem = str(missing)
    return {
        "workload": turn.workload, "verdict": turn.id, "outcome": turn.outcome, "path": str(path),
        **_story(turn), "address": address, "problem": problem,
    }  # fmt: skip


def _story(turn: Turn) -> dict[str, Any]:
    shown = [f"{figure.name}: {figure.number} ({figure.beside})" for figure in figures(turn)]
    return {"headline": headline(turn), "why": because(turn), "figures": shown}


def comparison(
    workload: str | None = None, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Write the page that compares a workload's turns; without one, those of the workload that turned last.

    Returns:
        workload, turns (how many) and path.

    Raises:
        SetupError: It has no verdict.
    """
    from tasks.report.turns import html as compared
    from tasks.report.turns import story_of

    story = story_of(find(workload=workload)[0].workload)
    path = settings().home / "reports" / f"turns-{quote(story.workload, safe='')}.html"
    write(path, compared(story))
    return {"workload": story.workload, "turns": len(story.turns), "path": str(path)}


def place_of(turn_id: str) -> Path:
    return settings().home / "reports" / f"{turn_id}.html"


def write(path: Path, text: str) -> None:
    """Whole or not at all; to be read by its owner alone, for it quotes traffic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.touch(0o600)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
