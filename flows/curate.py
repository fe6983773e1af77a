"""Interactions and feedback → a frozen dataset."""

from typing import Any

import tasks.curate
from prefect import flow
from tasks.curate import CurateSpec

from flows.stage import stage

curate_stage = stage(tasks.curate.curate, retries=2)


@flow(name="curate", flow_run_name="curate-{workload}")
def curate(workload: str, curate: CurateSpec = CurateSpec()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Freeze a workload's traffic as a dataset: deduplicated, corrected by feedback, split without leaks."""
    return curate_stage(workload, curate)
