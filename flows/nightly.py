"""Every workload's wheel, one after the other: what the schedules run."""

from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import Field

from flows.deployments import presets, with_preset
from flows.flywheel import flywheel
from infra.settings import SetupError
from tasks.ingest import workloads


@flow(name="nightly")
def nightly(
    preset: Annotated[
        str, Field(description="Preset of the wheel; empty: its defaults", json_schema_extra={"enum": ["", *presets()]})
    ] = "",
) -> dict[str, Any]:
    """Turn the wheel of every known workload; one that cannot turn yet does not stop the others.

    Args:
        preset: Preset of the wheel; empty takes its defaults.
    """
    options = with_preset(preset, {}) if preset else {}
    outcomes: dict[str, Any] = {}
    for workload in workloads():
        try:
            outcomes[workload] = flywheel(workload, **options)["outcome"]
        except SetupError as problem:
            outcomes[workload] = str(problem)
            get_run_logger().warning("%s: %s", workload, problem)
    return outcomes
