"""The whole loop, one call a stage."""

from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled
from pydantic import Field

from flows.cluster import require
from flows.curate import curate_stage
from flows.distill import trained
from flows.evaluate import score
from flows.ingest import ingest_stage
from flows.quantize import quantize_stage
from flows.redeploy import redeploy_stage
from flows.release import decide, plan_stage
from flows.report import drawn
from flows.stage import aligned
from flows.turn import Busy, turn
from infra.rollout.spec import RolloutSpec
from infra.settings import SetupError, settings
from tasks.curate import CurateSpec
from tasks.evaluate import EvaluateSpec
from tasks.gate.plan import enough
from tasks.gate.plan import said as planned_as
from tasks.lessons.top_k import CORRECTED
from tasks.quantize import CANDIDATES, CandidateSpec, fitting
from tasks.release import GateSpec
from tasks.sources import Source
from tasks.students import Causal, Classifier, StudentSpec
from tasks.sweep import SweepSpec, table, variants


@flow(name="flywheel", flow_run_name="flywheel-{workload}", persist_result=True, result_serializer="json")
def flywheel(
    workload: Annotated[str, Field(min_length=1, description="The feature whose traffic is used")],
    source: Annotated[
        Source | None, Field(description="More traffic to read first; what the gateway recorded is there already")
    ] = None,
    curate: CurateSpec = CurateSpec(),  # noqa: B008 (frozen, as are the specs below)
    distill: Causal = Causal(),  # noqa: B008
    sweep: SweepSpec = SweepSpec(),  # noqa: B008
    classify: Classifier = Classifier(),  # noqa: B008
    candidates: Annotated[tuple[CandidateSpec, ...], Field(min_length=1)] = CANDIDATES,
    evaluate: EvaluateSpec = EvaluateSpec(),  # noqa: B008
    gate: GateSpec = GateSpec(),  # noqa: B008
    rollout: RolloutSpec = RolloutSpec(),  # noqa: B008
    hours: Annotated[
        float, Field(gt=0, le=720, description="Longest time that the turn may take; then it is stopped")
    ] = 24.0,
) -> dict[str, Any]:
    """Turn the wheel once for one workload: from its traffic to a gated, quantized, registered, served student.

    Args:
        workload: The feature whose traffic is used.
        source: More traffic to read first.
        curate: How traffic becomes a frozen dataset.
        distill: How the student is trained.
        sweep: Several students by other options or seeds; the best on the validation split is quantized.
        classify: How a classifier is trained beside it, where the answers are a closed set and there is an encoder.
        candidates: The ways to quantize them; those in format onnx are the classifier's, all others the student's.
        evaluate: What is measured.
        gate: What a candidate has to show before it serves.
        rollout: The steps by which the winner gets to serve; without any it serves at once.
        hours: Longest time that the turn may take; then it is stopped, and the next goes on where it was.
    """
    require()
    variants(distill, sweep)  # what is wrong with it is said before anything is done
    try:
        with turn(workload, hours):
            return stages(workload, source, curate, distill, sweep, classify, candidates, evaluate, gate, rollout)
    except Busy as busy:
        if deployment.id is None or flow_run.parent_flow_run_id:
            raise
        return Cancelled(name="Skipped", message=str(busy))  # type: ignore[return-value]


def stages(
    workload: str,
    source: Source | None,
    curate: CurateSpec,
    distill: Causal,
    sweep: SweepSpec,
    classify: Classifier,
    candidates: tuple[CandidateSpec, ...],
    evaluate: EvaluateSpec,
    gate: GateSpec,
    rollout: RolloutSpec,
) -> dict[str, Any]:
    """The stages of a turn, one after the other; returns what the last said, and what it came from."""
    if source is not None:
        ingest_stage(source)
    dataset = curate_stage(workload, curate)
    planned = plan_stage(dataset["dataset_id"], gate, evaluate)
    if not enough(planned):
        get_run_logger().warning(planned_as(planned))
    without = classify.unfit(dataset.get("answers", {}))
    kinds: list[tuple[StudentSpec, SweepSpec]] = [(distill, sweep)]
    if not without:
        kinds.append((classify, SweepSpec()))
    asked = [(spec, several) for spec, several in kinds if fitting(spec.name, candidates)]
    if not asked:
        raise SetupError(f"candidates are all in format onnx, and there is no classifier: {without}; give others")
    found = trained(dataset["dataset_id"], asked)
    students = {spec.name: student for (spec, _), student in zip(asked, found, strict=True)}
    made = quantize_stage.each(
        [(student["student_id"], one) for kind, student in students.items() for one in fitting(kind, candidates)]
    )
    score(dataset["dataset_id"], [candidate["candidate_id"] for candidate in made], evaluate)
    result = decide(dataset["dataset_id"], gate, rollout)
    if result["outcome"] == "promote":
        result["served"] = redeploy_stage(workload)
    result["report"] = drawn(result["verdict"])
    return {**result, "dataset": dataset, "plan": planned, "students": students, "no_classifier": without}


def render(result: dict[str, Any]) -> str:
    """What the student learned from, the scorecards as a table, the verdict with its reasons, where the report is."""
    from tasks.release import scorecard_table, verdict_markdown

    told = "\n".join([*learned(result), *aligned(scorecard_table(result))]) + "\n\n" + verdict_markdown(result)
    return told + (f"\nReport: {result['report']}" if result.get("report") else "")


def learned(result: dict[str, Any]) -> list[str]:
    """Data, prompt, teacher and classifier in a line each, where the result is a whole turn's."""
    if "students" not in result:
        return []
    data, students = result["dataset"], result["students"]
    asks = result.get("plan", {}).get("recommended")
    said = ", ".join(f"{n} {rule}" for rule, n in data["feedback"].items() if rule != "nothing") or "none"
    lines = [
        f"{data['train']:,} interactions to train, {data['validation']:,} to validate, {data['holdout']:,} held out"
        + (f" (the gate asks for about {asks:,})" if asks else ""),
        "; ".join(
            [f"feedback used: {said}", *([prompt(students["causal"], data["prefix"])] if "causal" in students else [])]
        ),
    ]
    use = {"cost_usd": 0.0, **data.get("teacher_use", {})}
    if use["cost_usd"]:
        lines.append(f"the teacher answered {use['asked']:,} requests for {use['cost_usd']:,.2f} USD")
    causal = students.get("causal", {})
    if unheard := [f"{reason} ({n:,})" for reason, n in causal.get("not_followed", {}).items() if reason != CORRECTED]:
        lines.append(f"the teacher's distribution is followed in {causal['followed']:,}, not: {'; '.join(unheard)}")
    if "classifier" in students:
        made = students["classifier"]
        lines.append(f"classifier: {made['labels']:,} answers, {made['doubted']:,} rows left out as likely mistakes")
    elif data.get("answers", {}).get("closed") or settings().encoder:
        lines.append(f"no classifier: {result['no_classifier']}")
    if "sweep" in causal:
        lines += ["", *aligned(table(causal["sweep"]))]
    return [*lines, ""]


def prompt(student: dict[str, Any], baked: str | None) -> str:
    sent, read = student["prompt_tokens_sent"], student["prompt_tokens_read"]
    return f"prompt: {read:,.0f} tokens instead of {sent:,.0f}, the rest is baked in" if baked else "no prefix baked"
