"""A turn's report, as HTML: each part is made in a file of its own, and here they meet."""

from typing import Any

from tasks.report import numbers
from tasks.report.bill import bars, bill, saved, table
from tasks.report.confusion import confusion, worst_of
from tasks.report.curves import Learned, curve, learned
from tasks.report.examples import examples, is_different, kind_of
from tasks.report.holdout import holdout_of
from tasks.report.lineage import lineage
from tasks.report.page import HALF, both, page
from tasks.report.pareto import pareto, points_of
from tasks.report.slices import differences, intervals
from tasks.report.story import because, figures, headline
from tasks.report.timeline import Traffic, timeline, traffic_of
from tasks.report.turn import Turn


def html(turn: Turn) -> str:
    """The report; the same database and files give the same, byte for byte."""
    reference = "the teacher" if turn.reference is turn.teacher else turn.reference.name
    return page(
        "turn.html.jinja", turn=turn, title=f"{turn.workload}: {headline(turn)}", headline=headline(turn),
        why=because(turn), figures=figures(turn), reference=reference, items=turn.chosen.metrics.get("n"),
        yardsticks=_yardsticks(turn), machine=turn.chosen.metrics.get("machine"),
        **_tradeoff(turn), **_answers(turn, reference), **_bill(turn), **_traffic(turn), **_training(turn),
        lineage=lineage(turn),
    )  # fmt: skip


def _yardsticks(turn: Turn) -> str:
    held = turn.chosen.metrics.get("yardsticks") or {}
    return ", ".join(f"{n:,} held against a {name}" for name, n in held.items()).replace("a teacher's", "the teacher’s")


def _tradeoff(turn: Turn) -> dict[str, Any]:
    sizes, times = points_of(turn, "bytes"), points_of(turn, "latency_p50_ms")
    return {
        "by_bytes": both(lambda wide: pareto(sizes, "bytes of weights", numbers.size, wide), HALF),
        "by_latency": both(lambda wide: pareto(times, "median latency", numbers.ms, wide), HALF),
    }


def _answers(turn: Turn, reference: str) -> dict[str, Any]:
    """Slices, confusion and examples: what needs each item's answer."""
    found, held = differences(turn), holdout_of(turn)
    worst = worst_of(found)
    different = [one for one in held.items if is_different(one)]
    kinds = [kind_of(one) for one in different]
    return {
        "slices": both(lambda wide: intervals(found, turn, wide)) if found else "",
        "slices_missing": f"The items of {turn.chosen.name} and of {reference} are not both on file.",
        "confusion": confusion(held.items, worst) if worst else None,
        "confusion_missing": held.missing or "There is no slice to show.",
        "examples": examples(different), "different": len(different),
        "lost": kinds.count("lost"), "won": kinds.count("won"),
        "examples_missing": held.missing or "They answered every held-out request alike.",
    }  # fmt: skip


def _bill(turn: Turn) -> dict[str, Any]:
    lines = bill(turn)
    report = turn.chosen.student.report if turn.chosen.student else {}
    said = ["Machine time is that of the machine the scorecards were made on, several requests at a time."]
    if report.get("prompt_tokens_sent", 0) > report.get("prompt_tokens_read", 0):
        sent, read = report["prompt_tokens_sent"], report["prompt_tokens_read"]
        said.append(
            f"An application sends {sent:,.0f} tokens of prompt, of which the student reads {read:,.0f}: "
            "it has learned the rest."
        )
    use = [u for u in (turn.dataset.report.get("teacher_use"), turn.teacher.metrics.get("teacher_use")) if u]
    if spent := sum(u.get("cost_usd", 0.0) for u in use):
        said.append(f"This turn asked the teacher for {numbers.dollars(spent)}.")
    return {
        "bill": table(lines),
        "saved": saved(turn),
        "bars": both(lambda wide: bars(lines, wide)),
        "bill_note": " ".join(said),
    }


def _traffic(turn: Turn) -> dict[str, Any]:
    found = traffic_of(turn)
    if found is None:
        return {"traffic": "", "traffic_note": ""}
    return {"traffic": both(lambda wide: timeline(found, wide)), "traffic_note": _counted(found)}


def _counted(found: Traffic) -> str:
    whole = sum(found.teacher) + sum(found.students)
    by = f", {sum(found.students):,} of them answered by students" if any(found.students) else ""
    said = (
        f"People liked {sum(found.liked):,}, disliked {sum(found.disliked):,} and corrected {sum(found.corrected):,}."
        if found.opinions
        else "Nobody said anything of them."
    )
    return f"{whole:,} interactions by {found.grain}, in UTC{by}. {said}"


def _training(turn: Turn) -> dict[str, Any]:
    found = learned(turn)
    losses = [(one.loss, one.chosen) for one in found if one.loss]
    rows = [(one.validation, one.chosen) for one in found if one.validation]
    return {
        "losses": both(lambda wide: curve(losses, "Loss of the lesson", wide, dots=False), HALF),
        "validation": both(lambda wide: curve(rows, "Validation loss", wide, dots=True), HALF),
        "training_note": _lesson(turn, found),
    }


def _lesson(turn: Turn, found: list[Learned]) -> str:
    student = turn.chosen.student
    if student is None:
        return ""
    report, chosen = student.report, next((one for one in found if one.chosen), None)
    said = f"{report.get('steps', 0):,} steps over {report.get('examples', 0):,} examples"
    others = f", one of {len(found)} students (the others in grey)" if len(found) > 1 else ""
    if chosen and chosen.validation and student.spec.get("name") != "classifier":
        best = min(y for _, y in chosen.validation)
        return f"{said}{others}. The epoch of least validation loss was kept: {best:.4g} nats a token."
    return f"{said}{others}."
