"""Every workload's wheel, one after the other: what the schedule runs."""

from typing import Any

from prefect import flow, get_run_logger

from flows.flywheel import flywheel
from infra.settings import SetupError
from tasks.ingest import workloads


@flow(name="nightly")
def nightly() -> dict[str, Any]:
    """Turn the wheel of every known workload; one that cannot turn yet does not stop the others."""
    outcomes: dict[str, Any] = {}
    for workload in workloads():
        try:
            outcomes[workload] = flywheel(workload)["outcome"]
        except SetupError as problem:
            outcomes[workload] = str(problem)
            get_run_logger().warning("%s: %s", workload, problem)
    return outcomes
