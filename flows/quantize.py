"""Student → quantized candidates."""

from typing import Any

from prefect import flow

import tasks.quantize
from flows.stage import stage
from tasks.quantize import CANDIDATES, CandidateSpec, fitting, kind_of

quantize_stage = stage(tasks.quantize.quantize)


@flow(name="quantize", flow_run_name="quantize-{student_id}")
def quantize(student_id: str, candidates: tuple[CandidateSpec, ...] = CANDIDATES) -> list[dict[str, Any]]:
    """Quantize a student in those of the ways that fit its kind, and export each as it would be served.

    Args:
        student_id: What `distill` printed.
        candidates: The ways to quantize it.
    """
    return quantize_stage.each([(student_id, candidate) for candidate in fitting(kind_of(student_id), candidates)])
