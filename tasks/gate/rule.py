"""The gate: whether a candidate is shown to be no worse than what serves today, and than the teacher.

All answered the same holdout, so the tests are paired: Tango's of shares where the metric says right or wrong, with
each conversation counted as one observation at the worst (`proportions.py`), else a bootstrap by conversation
(`bootstrap.py`). Tested is every reference on the whole holdout, on every declared slice, and on the worst slices that
a search finds (`worst.py`); Holm's procedure corrects for their number (`holm.py`). A candidate is promoted if all
tests show the difference to lie above -margin, and its budgets are kept. It is rejected if a test shows one to lie
below, or a budget is broken. Anything else is inconclusive, and so is whatever is missing or does not match; that never
promotes.

The references are the champion and the teacher, both. Against the champion alone margins add up: each one may lose
three points to the one before it, and all tests were passed. Against the teacher alone, a champion that people's
corrections made better than the teacher could be replaced by one that is not. So every champion is within the margin of
the teacher, however many there were before it. The price is that a champion which is truly just within the margin is
hard to follow: a candidate that is as good needs as much luck, and until one is better what serves goes on serving.

The confidence is each candidate's own: of several truly inferior ones the chance that some one passes is higher.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

from tasks.gate.bootstrap import RESAMPLES, Drawn
from tasks.gate.holm import Level, holm
from tasks.gate.proportions import Shares, effective
from tasks.gate.worst import inside, search
from tasks.metrics import Metric, MetricSpec
from tasks.scoring.scorecards import Item, by_conversation, judged_by, value_of

PROMOTE, REJECT, INCONCLUSIVE = "promote", "reject", "inconclusive"


@dataclass(frozen=True)
class GateSpec:
    """What a candidate has to show before it serves.

    Attributes:
        slices: Each of these is tested as well, at `slice_margin`: `calls`, `words`, `tool:<name>`, `answer:<text>`,
            `turn:first`, `request:long`, `yardstick:correction` and so on (a scorecard lists them); both of two with
            ` & ` between them.
        worst: They are tested at `slice_margin`, too, and all that were looked at count (`worst.py`).
        spread, power: For the size of the holdout alone (`power.py`).
        max_latency_ms: Of the 95th percentile, requests asked one at a time.
        max_cost: Relative to the teacher's: USD where prices are known, else machine seconds a request.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    margin: Annotated[float, Field(gt=0, lt=1, description="Loss of quality that is no loss: 0.03 is 3 points")] = 0.03
    confidence: Annotated[float, Field(ge=0.5, lt=1, description="Of the one-sided tests together")] = 0.95
    slices: Annotated[tuple[str, ...], Field(description="Slices that are tested by themselves")] = ()
    slice_margin: Annotated[float, Field(gt=0, lt=1, description="The margin on a slice")] = 0.10
    worst: Annotated[int, Field(ge=0, description="Worst slices that are looked for and tested; 0 for no search")] = 0
    worst_items: Annotated[int, Field(ge=2, description="Items that a slice must have to be looked at")] = 100
    min_holdout: Annotated[int, Field(ge=1, description="Fewer items are never enough")] = 100
    spread: Annotated[
        float, Field(gt=0, le=1, description="Expected deviation of an item's difference: √(share that differs)")
    ] = 0.3
    power: Annotated[
        float, Field(gt=0, lt=1, description="Chance that an equal student passes at the recommended holdout")
    ] = 0.8
    max_bytes: Annotated[int | None, Field(ge=1, description="Budget: bytes of weights")] = None
    max_memory: Annotated[int | None, Field(ge=1, description="Budget: bytes of memory that its engine takes")] = None
    max_latency_ms: Annotated[float | None, Field(gt=0, description="Budget: 95th percentile of latency")] = None
    max_cost: Annotated[float | None, Field(gt=0, description="Budget: cost relative to the teacher")] = None


@dataclass(frozen=True)
class Card:
    """A scorecard as the gate reads it.

    Attributes:
        seconds: Machine seconds a request, with those of the teacher where a classifier abstains; None if not known.
        cost: What it costs over what the teacher does; None where either is not known.
        missing: What keeps it from being compared; empty if nothing does.
        id: Of the scorecard's row.
    """

    subject: str
    name: str
    metrics: dict[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    seconds: float | None = None
    cost: float | None = None
    missing: str = ""
    id: str = ""

    @property
    def number(self) -> int:
        return len(self.items)

    @property
    def ordered(self) -> list[Item]:
        return sorted(self.items, key=lambda item: item.interaction_id)


@dataclass(frozen=True)
class Finding:
    """What one test of the gate found about a candidate.

    Attributes:
        difference, low, high: Candidate minus reference, with one-sided bounds at `confidence`, the test's own.
        p_value: Of the difference being -margin or less.
        needed: Items that the holdout should have to tell, where it does not and more would.
        yardsticks: How many items were held against what.
    """

    outcome: str
    reason: str
    reference: str = ""
    slice: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    p_value: float | None = None
    needed: int | None = None
    yardsticks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """The gate's findings about one candidate; the first is about the whole holdout.

    Attributes:
        family: The tests that were corrected for, with the slices that a search looked at; 0 where nothing was tested.
    """

    findings: tuple[Finding, ...]
    family: int = 0

    @property
    def outcome(self) -> str:
        """Reject if any test rejects; promote only if all promote."""
        found = {finding.outcome for finding in self.findings}
        return REJECT if REJECT in found else PROMOTE if found == {PROMOTE} else INCONCLUSIVE

    @property
    def reasons(self) -> list[str]:
        """The findings that decided: those that agree with the outcome; of slices that all passed, the closest."""
        found = [f for f in self.findings if f.outcome == self.outcome]
        passed = [f for f in found if f.slice and self.outcome == PROMOTE]
        told = [f.reason for f in found if f not in passed]
        if passed:
            closest = max(passed, key=lambda f: f.p_value or 0.0)
            told.append(f"all {len(passed)} tests of slices pass, the closest {closest.reason}")
        return told


@dataclass(frozen=True)
class Test:
    """A candidate against a reference, on a slice or, where `name` is empty, on the whole holdout."""

    reference: Card
    name: str
    margin: float
    ours: list[Item]
    theirs: list[Item]
    data: Shares | Drawn


def judge(candidate: Card, references: Sequence[Card], spec: GateSpec) -> Judgement:
    """Hold a candidate's scorecard against those of what serves and of the teacher."""
    for reference in references:
        if problem := _mismatch(candidate, reference):
            return Judgement((Finding(INCONCLUSIVE, problem),))
    metric = metric_of(candidate)
    assert metric is not None
    tests, absent, looked = [], [], 0
    for reference in references:
        ours, theirs = candidate.ordered, reference.ordered
        found = search(ours, theirs, spec.worst, spec.worst_items, spec.slices) if spec.worst else None
        looked += found.looked - len(found.names) if found else 0
        for name in ("", *spec.slices, *(found.names if found else ())):
            pairs = [pair for pair in zip(ours, theirs, strict=True) if not name or inside(pair[0], name)]
            if not pairs:
                said = f"on slice {name!r} there is nothing to compare: no item, or a slice that was not scored"
                absent.append(Finding(INCONCLUSIVE, said, reference.subject, name))
                continue
            mine, other = map(list, zip(*pairs, strict=True))
            margin = spec.slice_margin if name else spec.margin
            tests.append(Test(reference, name, margin, mine, other, compared(metric, mine, other)))
    family = len(tests) + len(absent) + looked
    alpha = 1 - spec.confidence
    better = holm([test.data.above(-test.margin) for test in tests], alpha, family)
    worse = holm([test.data.below(-test.margin) for test in tests], alpha, family)
    findings = [
        _finding(test, metric, candidate.number, *levels) for test, *levels in zip(tests, better, worse, strict=True)
    ]
    findings += absent
    if (n := candidate.number) < spec.min_holdout:
        findings.append(Finding(INCONCLUSIVE, f"the holdout has {n} items, gate.min_holdout is {spec.min_holdout}"))
    return Judgement((*findings, *_budgets(candidate, spec)), family)


def compared(
    metric: Metric, ours: Sequence[Item], theirs: Sequence[Item], resamples: int = RESAMPLES
) -> Shares | Drawn:
    """The paired comparison of two models' items, given in the same order."""
    worth = effective(item.conversation for item in ours)
    if metric.binary:
        won = sum(mine.value > other.value for mine, other in zip(ours, theirs, strict=True))
        lost = sum(mine.value < other.value for mine, other in zip(ours, theirs, strict=True))
        return Shares(won, lost, len(ours), worth)
    sums = metric.sums([item.score for item in [*ours, *theirs]])
    mine, other = (by_conversation(ours, part) for part in (sums[: len(ours)], sums[len(ours) :]))
    return Drawn(mine, other, metric.together, len(ours), worth, resamples)


def metric_of(card: Card) -> Metric | None:
    """The metric that a scorecard's items were scored by; None where it is none that is known."""
    try:
        found: Metric = _menu().validate_python(card.metrics.get("metric"))
    except ValidationError:
        return None
    return found


@cache
def _menu() -> TypeAdapter[Any]:
    return TypeAdapter(MetricSpec)


def _mismatch(candidate: Card, reference: Card) -> str:
    """Why two scorecards cannot be compared; empty if they can."""
    for card in (candidate, reference):
        if card.missing:
            return f"{card.name} {card.missing}"
        if card.number != card.metrics.get("n"):
            counted = card.metrics.get("n")
            return f"{card.name} has {card.number} items on file, its scorecard counts {counted}; evaluate again"
        if metric_of(card) is None:
            return f"{card.name} was scored by {card.metrics.get('metric')!r}, which is no metric; evaluate again"
        if not card.items:
            return f"{card.name} has no item that {_named(card)} says anything of; evaluate by another metric"
    ours, theirs = candidate.metrics.get("metric"), reference.metrics.get("metric")
    if ours != theirs:
        return f"{candidate.name} was scored by {ours}, {reference.name} by {theirs}; evaluate both with one metric"
    sets = [
        [(i.interaction_id, i.conversation, i.slices, i.yardstick) for i in c.ordered] for c in (candidate, reference)
    ]
    if sets[0] != sets[1] or len({i.interaction_id for i in candidate.items}) != candidate.number:
        return f"{candidate.name} and {reference.name} were not scored on the same items; evaluate both again"
    return ""


def _finding(test: Test, metric: Metric, holdout: int, better: Level, worse: Level) -> Finding:
    """What a test shows, and the numbers behind it."""
    data, n = test.data, len(test.ours)
    outcome = PROMOTE if better.shown else REJECT if worse.shown else INCONCLUSIVE
    confidence = 1 - (worse if outcome == REJECT else better).alpha
    low, high = data.bounds(confidence)
    values = [value_of(metric, [item.score for item in items]) or 0.0 for items in (test.ours, test.theirs)]
    measure = "right" if metric.binary else f"by {metric.name}"
    facts = f"on slice {test.name!r}" if test.name else "on the holdout"
    facts += f" {values[0]:.1%} {measure} against {values[1]:.1%} of {test.reference.name}, {_counted(test)}: "
    facts += f"difference {100 * data.difference:+.1f} points, at {_percent(confidence)} confidence "
    allowed, more = f"{-100 * test.margin:+.1f}", None
    if outcome == PROMOTE:
        facts += f"at least {100 * low:+.1f}, and {allowed} is allowed"
    elif outcome == REJECT:
        facts += f"at most {100 * high:+.1f}, below the {allowed} allowed"
    else:
        told = data.needed(test.margin, confidence)
        more = None if told is None else max(holdout + 1, round(told * holdout / n))
        where = f" in the holdout, {told} of this slice," if test.name else ""
        enough = f"about {more} items{where} would tell" if more else "more items alone would not make it pass"
        facts += f"between {100 * low:+.1f} and {100 * high:+.1f}, and {allowed} is allowed; at these rates {enough}"
    return Finding(
        outcome, facts, test.reference.subject, test.name, data.difference, low, high, confidence,
        data.above(-test.margin), more, judged_by(test.ours),
    )  # fmt: skip


def _counted(test: Test) -> str:
    """How many items, what they are worth, by which yardsticks, and how they fell."""
    data, n = test.data, len(test.ours)
    said = f"{n} items" if data.worth > n - 0.5 else f"{n} items (worth {data.worth:.0f} independent ones)"
    said += "".join(f", {count} by {name}" for name, count in judged_by(test.ours).items())
    return said + (f", {data.won} won and {data.lost} lost" if isinstance(data, Shares) else "")


def _budgets(candidate: Card, spec: GateSpec) -> list[Finding]:
    metrics = candidate.metrics
    return [
        _within(measured, what, f"gate.{option}", limit)
        for measured, what, option, limit in (
            (metrics.get("bytes"), "bytes of weights", "max_bytes", spec.max_bytes),
            (metrics.get("memory_bytes"), "bytes of memory", "max_memory", spec.max_memory),
            (metrics.get("latency_p95_ms"), "ms at the 95th percentile", "max_latency_ms", spec.max_latency_ms),
            (candidate.cost, "times the teacher's cost", "max_cost", spec.max_cost),
        )
        if limit is not None
    ]


def _within(measured: float | None, what: str, option: str, limit: float) -> Finding:
    if measured is None:
        return Finding(INCONCLUSIVE, f"{what} were not measured, {option} is {_plain(limit)}")
    outcome = PROMOTE if measured <= limit else REJECT
    return Finding(outcome, f"{_plain(measured)} {what}, {option} is {_plain(limit)}")


def _named(card: Card) -> str:
    return str(card.metrics["metric"]["name"])


def _percent(confidence: float) -> str:
    """95%, 97.5%, 99.17%: so that 1 - it still tells levels apart."""
    return f"{100 * confidence:.4g}%"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
