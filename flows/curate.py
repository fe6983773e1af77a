"""Interactions and feedback → a frozen dataset."""

from typing import Any

from prefect import flow

import tasks.curate
from flows.stage import stage
from tasks.curate import CurateSpec

curate_stage = stage(tasks.curate.curate, retries=2)


@flow(name="curate", flow_run_name="curate-{workload}")
def curate(workload: str, curate: CurateSpec = CurateSpec()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Freeze a workload's traffic as a dataset: deduplicated, corrected by feedback, split without leaks.

    Args:
        workload: The feature whose traffic is used.
        curate: How traffic becomes a frozen dataset.
    """
    return curate_stage(workload, curate)
