"""The gate: whether a candidate is shown to be no worse than what serves today.

Both answered the same holdout, so the test is paired (`proportions.py`), with each conversation counted as one
observation at the worst. A candidate is promoted if the lower bound of the difference lies above -margin, on the whole
and on every declared slice, and its budgets are kept. It is rejected if an upper bound lies below -margin or a budget
is broken. Anything else is inconclusive, and so is whatever is missing or does not match; that never promotes.

The confidence is each candidate's own: of several truly inferior ones the chance that some one passes is higher.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tasks.proportions import effective, needed, tango
from tasks.scorecards import Item

PROMOTE, REJECT, INCONCLUSIVE = "promote", "reject", "inconclusive"


@dataclass(frozen=True)
class GateSpec:
    """What a candidate has to show before it serves.

    Attributes:
        slices: Each of these is tested as well, at `slice_margin`: `calls`, `words`, `tool:<name>`, `answer:<text>`.
        max_latency_ms: Of the 95th percentile, requests asked one at a time.
        max_cost: Machine seconds a request, relative to the teacher's.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    margin: Annotated[float, Field(gt=0, lt=1, description="Loss of quality that is no loss: 0.03 is 3 points")] = 0.03
    confidence: Annotated[float, Field(ge=0.5, lt=1, description="Of the one-sided test")] = 0.95
    slices: Annotated[tuple[str, ...], Field(description="Slices that are tested by themselves")] = ()
    slice_margin: Annotated[float, Field(gt=0, lt=1, description="The margin on a slice")] = 0.10
    min_holdout: Annotated[int, Field(ge=1, description="Fewer items are never enough")] = 100
    max_bytes: Annotated[int | None, Field(ge=1, description="Budget: bytes of weights")] = None
    max_latency_ms: Annotated[float | None, Field(gt=0, description="Budget: 95th percentile of latency")] = None
    max_cost: Annotated[float | None, Field(gt=0, description="Budget: cost relative to the teacher")] = None


@dataclass(frozen=True)
class Card:
    """A scorecard as the gate reads it.

    Attributes:
        seconds: Machine seconds a request, with those of the teacher where a classifier abstains; None if not known.
        cost: They over the teacher's on the same machine; None where either is not known.
        missing: What keeps it from being compared; empty if nothing does.
    """

    subject: str
    name: str
    metrics: dict[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    seconds: float | None = None
    cost: float | None = None
    missing: str = ""

    @property
    def number(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Finding:
    """What one test of the gate found about a candidate. The bounds are of candidate minus reference."""

    outcome: str
    reason: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judgement:
    """The gate's findings about one candidate; the first is about the whole holdout."""

    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> str:
        """Reject if any test rejects; promote only if all promote."""
        found = {finding.outcome for finding in self.findings}
        return REJECT if REJECT in found else PROMOTE if found == {PROMOTE} else INCONCLUSIVE

    @property
    def reasons(self) -> list[str]:
        """The findings that decided: all that agree with the outcome."""
        return [f.reason for f in self.findings if f.outcome == self.outcome]


def judge(candidate: Card, reference: Card, spec: GateSpec) -> Judgement:
    """Hold a candidate's scorecard against the reference's."""
    if problem := _mismatch(candidate, reference):
        return Judgement((Finding(INCONCLUSIVE, problem),))
    tests = [_compare(candidate, reference, "", spec.margin, spec.confidence)]
    if (n := candidate.number) < spec.min_holdout:
        tests.append(Finding(INCONCLUSIVE, f"the holdout has {n} items, gate.min_holdout is {spec.min_holdout}"))
    tests += [_compare(candidate, reference, name, spec.slice_margin, spec.confidence) for name in spec.slices]
    weights, late = candidate.metrics.get("bytes"), candidate.metrics.get("latency_p95_ms")
    for measured, what, option, limit in (
        (weights, "bytes of weights", "max_bytes", spec.max_bytes),
        (late, "ms at the 95th percentile", "max_latency_ms", spec.max_latency_ms),
        (candidate.cost, "times the teacher's cost", "max_cost", spec.max_cost),
    ):
        if limit is not None:
            tests.append(_within(measured, what, f"gate.{option}", limit))
    return Judgement(tuple(tests))


def _mismatch(candidate: Card, reference: Card) -> str:
    """Why two scorecards cannot be compared; empty if they can."""
    for card in (candidate, reference):
        if card.missing:
            return f"{card.name} {card.missing}"
        if card.number != card.metrics.get("n"):
            counted = card.metrics.get("n")
            return f"{card.name} has {card.number} items on file, its scorecard counts {counted}; evaluate again"
    ours, theirs = candidate.metrics.get("metric"), reference.metrics.get("metric")
    if ours != theirs:
        return f"{candidate.name} was scored by {ours!r}, {reference.name} by {theirs!r}; evaluate both with one metric"
    sets = [[(i.interaction_id, i.conversation, i.slices) for i in sorted(c.items)] for c in (candidate, reference)]
    if sets[0] != sets[1] or len({i.interaction_id for i in candidate.items}) != candidate.number:
        return f"{candidate.name} and {reference.name} were not scored on the same items; evaluate both again"
    return ""


def _compare(candidate: Card, reference: Card, name: str, margin: float, confidence: float) -> Finding:
    """Paired non-inferiority on a slice, or on everything where `name` is empty."""
    due = {item.interaction_id: item.right for item in reference.items}
    items = [item for item in candidate.items if not name or name in item.slices]
    where = f"on slice {name!r}" if name else "on the holdout"
    if not items:
        return Finding(INCONCLUSIVE, f"{where} there is nothing to compare: no item, or a slice that was not scored")
    n = len(items)
    won = sum(i.right and not due[i.interaction_id] for i in items)
    lost = sum(due[i.interaction_id] and not i.right for i in items)
    worth = effective(i.conversation for i in items)
    low, high = tango(won * worth / n, lost * worth / n, worth, confidence)
    ours, theirs = (sum(right) / n for right in ([i.right for i in items], [due[i.interaction_id] for i in items]))
    counted = f"{n} items" if worth > n - 0.5 else f"{n} items (worth {worth:.0f} independent ones)"
    facts = (
        f"{where} {ours:.1%} right against {theirs:.1%} of {reference.name}, {counted}, {won} won and {lost} lost: "
        f"difference {100 * (won - lost) / n:+.1f} points, at {confidence:.0%} confidence "
    )
    outcome = PROMOTE if low > -margin else REJECT if high < -margin else INCONCLUSIVE
    allowed = f"{-100 * margin:+.1f}"
    if outcome == PROMOTE:
        facts += f"at least {100 * low:+.1f}, and {allowed} is allowed"
    elif outcome == REJECT:
        facts += f"at most {100 * high:+.1f}, below the {allowed} allowed"
    else:
        more = needed(won, lost, n, margin, confidence)
        enough = (
            f"about {round(more * n / worth)} items would tell" if more else "more items alone would not make it pass"
        )
        facts += f"between {100 * low:+.1f} and {100 * high:+.1f}, and {allowed} is allowed; at these rates {enough}"
    return Finding(outcome, facts, (won - lost) / n, low, high)


def _within(measured: float | None, what: str, option: str, limit: float) -> Finding:
    if measured is None:
        return Finding(INCONCLUSIVE, f"{what} were not measured, {option} is {_plain(limit)}")
    outcome = PROMOTE if measured <= limit else REJECT
    return Finding(outcome, f"{_plain(measured)} {what}, {option} is {_plain(limit)}")


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
