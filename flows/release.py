"""Scorecards → verdict → registry: promote, reject, or roll back."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

import tasks.gate.plan
import tasks.release
from flows.report import drawn
from flows.stage import in_flow_run, stage
from infra.rollout.spec import RolloutSpec
from tasks.evaluate import EvaluateSpec
from tasks.release import GateSpec

release_stage = stage(tasks.release.release, retries=2)
plan_stage = stage(tasks.gate.plan.plan, retries=2)
rollback_stage = stage(tasks.release.rollback)  # a repeated rollback would undo itself


def decide(dataset_id: str, gate: GateSpec, rollout: RolloutSpec) -> dict[str, Any]:
    """Gate what was scored on a dataset, act on it, and leave scorecard and verdict on the run's page."""
    result = release_stage(dataset_id, gate, rollout)
    if in_flow_run():
        about = f"of {result['workload']}"
        create_table_artifact(tasks.release.scorecard_table(result), key="scorecard", description=f"Scorecards {about}")
        create_markdown_artifact(tasks.release.verdict_markdown(result), key="verdict", description=f"Verdict {about}")
    return result


@flow(name="release", flow_run_name="release-{workload}")
def release(
    workload: str,
    rollback: bool = False,
    plan: bool = False,
    gate: GateSpec = GateSpec(),  # noqa: B008 (frozen, as is the other)
    rollout: RolloutSpec = RolloutSpec(),  # noqa: B008
) -> dict[str, Any]:
    """Gate the candidates of a workload's newest dataset and promote the winner; or give `previous` back its place.

    Args:
        workload: The feature whose champion may change.
        rollback: Make the previous champion serve again instead.
        plan: Only say how many items the gate asks the newest dataset's holdout to have.
        gate: What a candidate has to show.
        rollout: The steps by which the winner gets to serve.
    """
    if rollback:
        return rollback_stage(workload)
    dataset_id = tasks.release.newest_dataset(workload)
    if plan:
        return plan_stage(dataset_id, gate, EvaluateSpec())
    result = decide(dataset_id, gate, rollout)
    return {**result, "report": drawn(result["verdict"])}


def render(result: dict[str, Any]) -> str:
    from flows.flywheel import render as turn

    if "outcome" in result:
        return turn(result)
    if "recommended" in result:
        return tasks.gate.plan.said(result)
    return f"{result['workload']}: version {result['champion']} serves again, {result['previous']} is now `previous`"
