"""Candidates → scorecards."""

from typing import Any

from prefect import flow

import tasks.evaluate
from flows.stage import stage
from tasks.evaluate import EvaluateSpec

teacher_stage = stage(tasks.evaluate.evaluate_teacher, retries=2)
champion_stage = stage(tasks.evaluate.evaluate_champion, retries=2)
candidate_stage = stage(tasks.evaluate.evaluate_candidate)


def score(dataset_id: str, candidates: list[str], spec: EvaluateSpec) -> dict[str, Any]:
    """Teacher, champion (if one serves) and candidates on the same holdout, one after the other on the same machine."""
    return {
        "teacher": teacher_stage(dataset_id, spec),
        "champion": champion_stage(dataset_id, spec),
        "candidates": [candidate_stage(dataset_id, candidate, spec) for candidate in candidates],
    }


@flow(name="evaluate", flow_run_name="evaluate-{dataset_id}")
def evaluate(dataset_id: str, evaluate: EvaluateSpec = EvaluateSpec()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Score the teacher, the champion and every candidate made from a dataset on its holdout.

    Args:
        dataset_id: What `curate` printed.
        evaluate: What is measured.
    """
    return score(dataset_id, tasks.evaluate.candidates_of(dataset_id), evaluate)
