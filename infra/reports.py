"""A turn's report in MLflow: the file `report.html` with the run of each version that its candidates are.

A turn of which none is registered (its files are gone, or it was before every candidate was) has a run of its own, with
the turn's id as a tag: made once, found again. A version has the report's address as a tag and, as a link, in the first
line of its description.
"""

from collections.abc import Sequence
from typing import Any

from infra.registry import experiment_of
from infra.servers import running
from infra.settings import settings
from infra.tracking import connected
from infra.versions import LONGEST_DESCRIPTION

FILE = "report.html"
TAG, TURN = "flywheel.report", "flywheel.turn"
LINK = "[The report of this turn]("


def put(report: str, turn: str, workload: str, outcome: str, runs: Sequence[str]) -> list[str]:
    """Leave a report with these runs, in place of what was there, or with the turn's own; returns the runs.

    Raises:
        SetupError: MLflow cannot be reached or refuses.
    """
    with connected(settings().mlflow_uri) as client:
        experiment = experiment_of(client, workload)
        found = [*runs, *_own_runs(client, turn, experiment)] or [_own_run(client, experiment, turn, workload, outcome)]
        for run_id in found:
            client.log_text(run_id, report, FILE)
            for version in client.search_model_versions(f"run_id = '{run_id}'"):
                _tell(client, version, run_id)
    return found


def kept(turn: str, workload: str, runs: Sequence[str]) -> list[str]:
    """Those of the turn's runs that have a report.

    Raises:
        SetupError: MLflow cannot be reached or refuses.
    """
    with connected(settings().mlflow_uri) as client:
        found = [*runs, *_own_runs(client, turn, experiment_of(client, workload))]
        return [run_id for run_id in found if any(file.path == FILE for file in client.list_artifacts(run_id))]


def address(run_id: str) -> str | None:
    """The report's page in MLflow; None where no server is known that shows it.

    Raises:
        SetupError: MLflow cannot be reached or refuses.
    """
    uri = settings().mlflow_uri
    server = uri if uri.startswith(("http://", "https://")) else running().get("mlflow")
    if server is None:
        return None
    with connected(uri) as client:
        return f"{server.rstrip('/')}/{_place(client, run_id)}"


def _place(client: Any, run_id: str) -> str:
    """The page within MLflow's UI, wherever that is."""
    return f"#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}/artifacts/{FILE}"


def _own_run(client: Any, experiment: str, turn: str, workload: str, outcome: str) -> str:
    tags = {TURN: turn, "workload": workload, "verdict": outcome}
    run_id = str(client.create_run(experiment, tags=tags, run_name=f"turn: {outcome}").info.run_id)
    client.set_terminated(run_id)
    return run_id


def _own_runs(client: Any, turn: str, experiment: str) -> list[str]:
    return [
        str(run.info.run_id) for run in client.search_runs([experiment], f"tags.`{TURN}` = '{turn}'", max_results=1)
    ]


def _tell(client: Any, version: Any, run_id: str) -> None:
    """Tag and description of a version; once is enough."""
    client.set_model_version_tag(version.name, version.version, TAG, f"runs:/{run_id}/{FILE}")
    if not (version.description or "").startswith(LINK):
        said = f"{LINK}{_place(client, run_id)})\n\n{version.description or ''}"
        client.update_model_version(version.name, version.version, said[:LONGEST_DESCRIPTION])
