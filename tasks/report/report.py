"""Verdict → report: a turn's page is written to the home, and a copy left with its run in MLflow."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from infra import reports
from infra.settings import SetupError
from tasks.report.file import place_of, write
from tasks.report.story import because, figures, headline
from tasks.report.turn import Turn, find, turn_of
from tasks.report.turns import html as compared
from tasks.report.turns import story_of
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
    story = story_of(find(workload=workload)[0].workload)
    path = place_of(f"turns-{quote(story.workload, safe='')}")
    write(path, compared(story))
    return {"workload": story.workload, "turns": len(story.turns), "path": str(path)}
