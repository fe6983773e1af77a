"""What was decided and why, in a sentence each, and the few numbers that matter."""

from typing import Any, NamedTuple

from tasks.gate.rule import PROMOTE, REJECT
from tasks.report.numbers import NONE, count, dollars, ms, percent, points, size, times
from tasks.report.turn import Model, Turn


class Figure(NamedTuple):
    """A big number: its name, itself, and what it is beside."""

    name: str
    number: str
    beside: str


def headline(turn: Turn) -> str:
    served = "the teacher" if turn.reference is turn.teacher else turn.reference.name.replace("champion", "version")
    name, version = turn.chosen.name, turn.verdict.model_version
    if turn.outcome == PROMOTE:
        if turn.began == "under way":
            return f"{name} was sent on its way to replace {served}, as version {version}."
        return f"{name} took over from {served}, as version {version}."
    if turn.outcome == REJECT:
        return f"No candidate was good enough; {served} went on serving."
    return f"Nothing was shown either way; {served} went on serving."


def because(turn: Turn) -> str:
    """Why: of a promotion the test that was closest, else the first finding that stood in the way."""
    found = turn.verdict.reasons.get("findings") or []
    blocking = [f for f in found if f["outcome"] != PROMOTE]
    tests = [f for f in found if f.get("difference") is not None]
    if turn.outcome == PROMOTE and tests:
        return _sentence(turn, min(tests, key=lambda f: f["low"] + _margin(turn, f)), "")
    name = "It" if len(turn.candidates) == 1 else f"{turn.chosen.name}, the nearest of {len(turn.candidates)},"
    if blocking and blocking[0].get("difference") is not None:
        return _sentence(turn, blocking[0], name)
    reasons = [f["reason"] for f in blocking] or turn.verdict.reasons.get("reasons") or ["no reason is on file"]
    return f"{turn.chosen.name}: {reasons[0]}."


def _sentence(turn: Turn, finding: dict[str, Any], name: str) -> str:
    """A test in words: what was measured, how sure it is, what is allowed."""
    against = next((m for m in turn.models if m.card.subject == finding["reference"]), turn.reference)
    other = "the teacher" if against is turn.teacher else against.name
    where = f"of slice {finding['slice']} " if finding.get("slice") else ""
    n = sum(finding.get("yardsticks", {}).values())
    measured = (
        f"{name or turn.chosen.name} was right in {percent(turn.chosen.metrics.get('quality'))} of {count(n)} held-out "
        f"requests, {other} in {percent(against.metrics.get('quality'))}"
        if not where and turn.metric == "quality"
        else f"{name or turn.chosen.name} differed from {other} by {points(finding['difference'])} points "
        f"{where}on {count(n)} held-out requests"
    )
    sure, allowed = f"{100 * finding['confidence']:.4g} % confidence", f"{100 * _margin(turn, finding):g} are allowed"
    low, high = -100 * finding["low"], -100 * finding["high"]
    if finding["outcome"] == PROMOTE:
        lost = f"it loses at most {low:.1f} points" if low > 0 else f"it gains at least {-low:.1f} points"
        return f"{measured}; at {sure} {lost}, and {allowed}."
    if finding["outcome"] == REJECT:
        return f"{measured}; at {sure} it loses at least {high:.1f} points, and {allowed}."
    enough = f"; about {count(finding['needed'])} held-out requests would tell" if finding.get("needed") else ""
    between = f"between {points(finding['low'])} and {points(finding['high'])} points"
    return f"{measured}; at {sure} the difference lies {between}, and {allowed}{enough}."


def _margin(turn: Turn, finding: dict[str, Any]) -> float:
    return float(turn.spec["slice_margin" if finding.get("slice") else "margin"])


def figures(turn: Turn) -> list[Figure]:
    """Quality, cost, size and latency of the chosen one, beside the teacher's and the champion's."""
    mine, teacher = turn.chosen.metrics, turn.teacher.metrics
    others = [turn.teacher, *([turn.champion] if turn.champion else [])]
    return [
        Figure("Quality", percent(mine.get("quality")), _beside(others, lambda m: percent(m.metrics.get("quality")))),
        cost(turn, others),
        Figure("Size", size(mine.get("bytes")), _smaller(mine, teacher, others)),
        Figure(
            "Median latency", ms(mine.get("latency_p50_ms")),
            _beside(others, lambda m: ms(m.metrics.get("latency_p50_ms"))),
        ),
    ]  # fmt: skip


def cost(turn: Turn, others: list[Model]) -> Figure:
    """In USD where both have a price, else machine time over the teacher's."""
    paid = {m.card.subject: m.metrics.get("usd_per_1000") for m in (turn.chosen, *others)}
    if paid[turn.chosen.card.subject] is not None and paid["teacher"] is not None:
        beside = _beside(others, lambda m: dollars(paid[m.card.subject]))
        return Figure("Cost per 1,000 requests", dollars(paid[turn.chosen.card.subject]), beside)
    if turn.chosen.card.cost is None:
        return Figure("Cost", NONE, "the teacher's cost is not known")
    return Figure("Cost", times(turn.chosen.card.cost), "of the teacher’s machine time")


def _beside(others: list[Model], shown: Any) -> str:
    said = [f"{short(model)} {shown(model)}" for model in others if shown(model) != NONE]
    return ", ".join(said)


def _smaller(mine: dict[str, Any], teacher: dict[str, Any], others: list[Model]) -> str:
    said = _beside(others, lambda m: size(m.metrics.get("bytes")))
    return said or "the teacher’s is not known"


def short(model: Model) -> str:
    """A name for a small place."""
    if model.role == "teacher":
        return "teacher"
    return f"champion {model.card.subject.partition(':')[2]}" if model.role == "champion" else model.name
