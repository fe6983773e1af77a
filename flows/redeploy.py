"""Registry alias → running server."""

from typing import Any

from prefect import flow

import tasks.redeploy
from flows.stage import stage

redeploy_stage = stage(tasks.redeploy.redeploy, retries=2)


@flow(name="redeploy", flow_run_name="redeploy-{workload}")
def redeploy(workload: str) -> dict[str, Any]:
    """Load the champion as it will be served, and wait until the running gateway, if there is one, serves it."""
    return redeploy_stage(workload)
