"""The whole loop, one call a stage."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.curate import curate_stage
from flows.distill import distill_stage
from flows.evaluate import score
from flows.ingest import ingest_stage
from flows.quantize import quantize_stage
from flows.redeploy import redeploy_stage
from flows.release import decide
from tasks.curate import CurateSpec
from tasks.evaluate import EvaluateSpec
from tasks.lessons.top_k import CORRECTED
from tasks.quantize import CANDIDATES, CandidateSpec
from tasks.release import GateSpec
from tasks.sources import Source
from tasks.students import Causal


@flow(name="flywheel", flow_run_name="flywheel-{workload}", persist_result=True, result_serializer="json")
def flywheel(
    workload: Annotated[str, Field(min_length=1, description="The feature whose traffic is used")],
    source: Annotated[
        Source | None, Field(description="More traffic to read first; what the gateway recorded is there already")
    ] = None,
    curate: CurateSpec = CurateSpec(),  # noqa: B008 (frozen, as are the specs below)
    distill: Causal = Causal(),  # noqa: B008
    candidates: Annotated[tuple[CandidateSpec, ...], Field(min_length=1)] = CANDIDATES,
    evaluate: EvaluateSpec = EvaluateSpec(),  # noqa: B008
    gate: GateSpec = GateSpec(),  # noqa: B008
) -> dict[str, Any]:
    """Turn the wheel once for one workload: from its traffic to a gated, quantized, registered, served student.

    Args:
        workload: The feature whose traffic is used.
        source: More traffic to read first.
        curate: How traffic becomes a frozen dataset.
        distill: How the student is trained.
        candidates: The ways to quantize it.
        evaluate: What is measured.
        gate: What a candidate has to show before it serves.
    """
    if source is not None:
        ingest_stage(source)
    dataset = curate_stage(workload, curate)
    student = distill_stage(dataset["dataset_id"], distill)
    made = [quantize_stage(student["student_id"], candidate) for candidate in candidates]
    score(dataset["dataset_id"], [candidate["candidate_id"] for candidate in made], evaluate)
    result = decide(dataset["dataset_id"], gate)
    if result["outcome"] == "promote":
        result["served"] = redeploy_stage(workload)
    return {**result, "dataset": dataset, "student": student}


def render(result: dict[str, Any]) -> str:
    """What the student learned from, the scorecards as a table, and the verdict with its reasons."""
    from tasks.release import scorecard_table, verdict_markdown

    rows = scorecard_table(result)
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    lines = ["  ".join(key.ljust(width) for key, width in widths.items()).rstrip()]
    lines += ["  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip() for row in rows]
    return "\n".join([*learned(result), *lines]) + "\n\n" + verdict_markdown(result)


def learned(result: dict[str, Any]) -> list[str]:
    """Data and prompt in two lines, where the result is a whole turn's; a third where the teacher was not followed."""
    if "student" not in result:
        return []
    data, student = result["dataset"], result["student"]
    said = ", ".join(f"{n} {rule}" for rule, n in data["feedback"].items() if rule != "nothing") or "none"
    sent, read = student["prompt_tokens_sent"], student["prompt_tokens_read"]
    why = [f"{reason} ({n:,})" for reason, n in student.get("not_followed", {}).items() if reason != CORRECTED]
    heard = [f"the teacher's distribution is followed in {student['followed']:,}, not: {'; '.join(why)}"] if why else []
    baked = (
        f"prompt: {read:,.0f} tokens instead of {sent:,.0f}, the rest is baked in"
        if data["prefix"]
        else "no prefix baked"
    )
    use = {"cost_usd": 0.0, **data.get("teacher_use", {})}
    paid = [f"the teacher answered {use['asked']:,} requests for {use['cost_usd']:,.2f} USD"] if use["cost_usd"] else []
    return [
        f"{data['train']:,} interactions to train, {data['validation']:,} to validate, {data['holdout']:,} held out",
        f"feedback used: {said}; {baked}",
        *heard,
        *paid,
        "",
    ]
