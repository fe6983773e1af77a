"""Dataset → fine-tuned student, or the best of several."""

import json
from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

import tasks.distill
import tasks.sweep
from flows.stage import aligned, in_flow_run, stage
from tasks.students import Causal, StudentSpec
from tasks.sweep import SweepSpec

distill_stage = stage(tasks.distill.distill)


def trained(dataset_id: str, asked: Sequence[tuple[StudentSpec, SweepSpec]]) -> list[dict[str, Any]]:
    """The best student of each spec and its sweep; a sweep's table is left on the run's page."""
    tried = [tasks.sweep.variants(spec, sweep) for spec, sweep in asked]
    made = iter(distill_stage.each([(dataset_id, one) for some in tried for v in some for one in v.students]))
    found = [tasks.sweep.best(some, [next(made) for v in some for _ in v.students]) for some in tried]
    for student in found:
        if "sweep" in student and in_flow_run():
            rows = tasks.sweep.table(student["sweep"])
            create_table_artifact(rows, key="sweep", description="Students by validation loss")
    return found


@flow(name="distill", flow_run_name="distill-{dataset_id}")
def distill(
    dataset_id: str,
    distill: StudentSpec = Causal(),  # noqa: B008 (frozen)
    sweep: SweepSpec = SweepSpec(),  # noqa: B008
) -> dict[str, Any]:
    """Train a student on a frozen dataset, with the teacher's logits where there is a local teacher; or several.

    Args:
        dataset_id: What `curate` printed.
        distill: How the student is trained.
        sweep: Several students by other options or seeds; the best on the validation split is returned.
    """
    return trained(dataset_id, [(distill, sweep)])[0]


def render(student: dict[str, Any]) -> str:
    rows = student.pop("sweep", [])
    return "\n".join([*aligned(tasks.sweep.table(rows)), json.dumps(student, indent=2, default=str)])
