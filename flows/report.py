"""A turn's report: the page, and the way to it."""

import logging
import webbrowser
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

import tasks.report.report
from flows.stage import in_flow_run, stage
from infra.settings import SetupError

report_stage = stage(tasks.report.report.report)
comparison_stage = stage(tasks.report.report.comparison)
log = logging.getLogger("flywheel.report")


def drawn(verdict_id: str) -> str | None:
    """Where the report of a turn is, made now and told on the run's page; whatever goes wrong, the turn goes on."""
    try:
        made = report_stage(verdict_id)
        if in_flow_run():
            create_markdown_artifact(markdown(made), key="report", description=f"Report of {made['workload']}")
    except Exception as problem:
        log.warning("no report of the turn: %s; `flywheel report --verdict %s` tries again", _line(problem), verdict_id)
        return None
    if made["problem"]:
        log.warning("the report has no copy in MLflow: %s", made["problem"])
    return str(made["path"])


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:300] or type(problem).__name__


def markdown(made: dict[str, Any]) -> str:
    """For Prefect's page: the story, and the link."""
    page = f"[The report]({made['address']})" if made["address"] else f"The report: `{made['path']}`"
    return "\n\n".join([f"**{made['headline']}**", made["why"], "\n".join(f"- {f}" for f in made["figures"]), page])


@flow(name="report")
def report(
    workload: Annotated[str | None, Field(description="Its last turn; default: the last of any")] = None,
    verdict: Annotated[str | None, Field(description="The turn that this verdict belongs to, by its id")] = None,
    turns: bool = False,
    open: bool = False,
) -> dict[str, Any]:
    """Write the report of a turn: one HTML file, and a copy in MLflow. --turns compares all turns of a workload.

    Args:
        workload: The feature whose last turn is reported.
        verdict: The turn that this verdict belongs to, in place of the last.
        turns: Quality and cost by version over time, with what was promoted and rolled back.
        open: Show it in the browser.
    """
    if turns and verdict:
        raise SetupError("--turns is about all turns of a workload, --verdict about one; give one of the two")
    made = comparison_stage(workload) if turns else report_stage(verdict, workload)
    if open and not webbrowser.open(Path(made["path"]).as_uri()):
        log.warning("no browser can be started here; open %s", made["path"])
    return made


def render(made: dict[str, Any]) -> str:
    if "turns" in made:
        return f"{made['turns']} turns of {made['workload']}: {made['path']}"
    lines = [made["headline"], made["why"], "", f"Report: {made['path']}"]
    if made["address"]:
        lines.append(f"in MLflow: {made['address']}")
    if made["problem"]:
        lines.append(f"no copy in MLflow: {made['problem']}")
    return "\n".join(lines)
