"""Registry → running server: what is under way, or serves, is loaded and seen to be taken over."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

import tasks.redeploy
from flows.stage import aligned, stage
from infra.rollout.spec import RolloutSpec

redeploy_stage = stage(tasks.redeploy.redeploy, retries=2)


@flow(name="redeploy", flow_run_name="redeploy-{workload}")
def redeploy(
    workload: str,
    version: Annotated[
        str | None, Field(description="A registered version to begin with; default: what is under way, or serves")
    ] = None,
    rollout: RolloutSpec = RolloutSpec(),  # noqa: B008 (frozen)
    abort: bool = False,
) -> dict[str, Any]:
    """Load what is to serve, wait until the running gateway, if there is one, has taken it over, and show its rollout.

    Args:
        workload: The feature whose server it is.
        version: A registered version to begin with, by the steps of `rollout`.
        rollout: The steps by which it gets to serve.
        abort: End what is under way; what served goes on serving.
    """
    return redeploy_stage(workload, version, rollout, abort)


def render(result: dict[str, Any]) -> str:
    """Who serves, and what became of the latest rollout: its steps, what was seen, what was decided and why."""
    serves = f"{result['workload']}: version {result['version']} on {result['engine']}; gateway: {result['gateway']}"
    if result["version"] is None:
        serves = f"{result['workload']}: the teacher; gateway: {result['gateway']}"
    if "warning" in result:
        serves += f"\n{result['warning']}"
    told = result.get("rollout")
    if told is None:
        return serves
    against = "the teacher" if told["reference"] == "teacher" else f"version {told['reference']}"
    lines = [serves, "", f"rollout of version {told['version']} against {against}: {told['status']}"]
    if told["waits_for"]:
        worst = ", ".join(f"{measure} p {p:.2g}" for measure, p in told["p"].items())
        lines.append(f"step {told['step']} of {told['steps']}, {told['waits_for']}; {worst}")
    lines += ["", *aligned(told["arms"]), ""] if told["arms"] else [""]
    return "\n".join([*lines, *(f"{one['at'][:19]}  {one['action']}: {one['reason']}" for one in told["decisions"])])
