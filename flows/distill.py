"""Dataset → fine-tuned student."""

from typing import Any

from prefect import flow

import tasks.distill
from flows.stage import stage
from tasks.students import Causal, StudentSpec

distill_stage = stage(tasks.distill.distill)


@flow(name="distill", flow_run_name="distill-{dataset_id}")
def distill(dataset_id: str, distill: StudentSpec = Causal()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Train a student on a frozen dataset, with the teacher's logits where there is a local teacher."""
    return distill_stage(dataset_id, distill)
