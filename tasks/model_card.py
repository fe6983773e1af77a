"""The card of a version, in Markdown: what it was made of and how, what it was shown to be worth, and where it is weak.

A slice is called weak where the whole interval of its quality lies below the quality of the whole: what is only
unlucky is not listed, and a slice too small to tell is not either.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from tasks.gate.rule import PROMOTE

Metrics = Mapping[str, Any]
NUMBERS = (
    ("bytes of weights", "bytes", "{:,.0f}"), ("tokens a second", "tokens_per_second", "{:,.0f}"),
    ("ms, median", "latency_p50_ms", "{:,.0f}"), ("ms, 95th percentile", "latency_p95_ms", "{:,.0f}"),
    ("left to the teacher", "abstained", "{:.1%}"),
)  # fmt: skip


class Split(NamedTuple):
    """What of a dataset is in one split, and the time that it is from."""

    name: str
    rows: int
    first: datetime
    last: datetime


class Made(NamedTuple):
    """How a version came to be: the candidate's name, the dataset, and the specs, flat, of student and candidate."""

    workload: str
    name: str
    dataset_id: str
    artifact_hash: str
    splits: Sequence[Split]
    feedback: Mapping[str, int]
    student: Mapping[str, Any]
    candidate: Mapping[str, Any]


def model_card(
    made: Made, metrics: Metrics, references: Mapping[str, Metrics], outcome: str, said: Sequence[str]
) -> str:
    """The card.

    Args:
        metrics: The candidate's scorecard.
        references: The scorecards that it was held against, by name.
        outcome: The gate's.
        said: Its reasons.
    """
    parts = [
        f"# {made.workload}: {made.name}\n\nA student of the workload `{made.workload}`, made of its own traffic by "
        f"Flywheel. Files: sha256 `{made.artifact_hash}`, each by itself in SHA256SUMS.",
        f"## Data\n\n{_data(made)}",
        "## Recipe\n\n" + _table(("what", "value"), [*_recipe("student", made.student), *_recipe("", made.candidate)]),
        "## Scorecard\n\n" + _scorecard(made.name, metrics, references),
        f"## Verdict: {outcome}\n\n" + "\n".join(f"- {reason}" for reason in said) + _stays(outcome),
        "## Slices\n\n" + _slices(metrics),
        "## Known weak slices\n\n" + _weak(metrics),
        f"## Use\n\n{USE}",
    ]
    return "\n\n".join(parts) + "\n"


def _stays(outcome: str) -> str:
    if outcome == PROMOTE:
        return ""
    return "\n\nIt did not pass the gate, so it serves nobody, unless a person moves the alias `champion` to it."


USE = (
    "It answers OpenAI's chat requests of this workload alone: with the system prompt and the tools in "
    "`input_example.json`, which it has learned and is not sent, or with neither. Flywheel's gateway serves the "
    "champion and leaves other requests to the teacher; `mlflow models serve` serves any version by itself, `model/` "
    "any engine that reads its format. Quality is the share of right answers on the holdout, by the scorecard's "
    "metric; the interval is at 95 %, for each number by itself."
)


def _data(made: Made) -> str:
    rows = [(split.name, f"{split.rows:,}", _day(split.first), _day(split.last)) for split in made.splits]
    feedback = ", ".join(f"{count} {kind}" for kind, count in made.feedback.items()) or "none"
    whence = f"Dataset `{made.dataset_id}`, split by conversation and near duplicates, the holdout the latest."
    return f"{whence}\n\n{_table(('split', 'interactions', 'from', 'to'), rows)}\n\nFeedback used: {feedback}."


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


def _recipe(whose: str, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"{whose} {name}".strip(), f"`{value}`") for name, value in spec.items()]


def _scorecard(name: str, metrics: Metrics, references: Mapping[str, Metrics]) -> str:
    cards = {name: metrics, **references}
    quality = (f"quality ({metrics.get('metric', 'not scored')})", *(_quality(card) for card in cards.values()))
    rows = [(what, *(_number(card.get(key), form) for card in cards.values())) for what, key, form in NUMBERS]
    return _table(("", *cards), [quality, *(row for row in rows if set(row[1:]) != {"n/a"})])


def _slices(metrics: Metrics) -> str:
    rows = [(name, f"{card['n']:,}", _quality(card)) for name, card in _by_quality(metrics)]
    return _table(("slice", "items", "quality"), rows) if rows else "None."


def _weak(metrics: Metrics) -> str:
    whole = metrics.get("quality")
    weak = [
        f"- {name}: {_quality(card)} of {card['n']:,} items, against {_number(whole, '{:.1%}')} on the whole"
        for name, card in _by_quality(metrics)
        if whole is not None and card.get("high") is not None and card["high"] < whole
    ]
    return "\n".join(weak) or f"None of {len(metrics.get('slices', {}))} slices is shown to be worse than the whole."


def _by_quality(metrics: Metrics) -> list[tuple[str, Metrics]]:
    scored = [(name, card) for name, card in metrics.get("slices", {}).items() if card.get("quality") is not None]
    return sorted(scored, key=lambda one: (one[1]["quality"], one[0]))


def _quality(card: Metrics) -> str:
    if card.get("low") is None or card.get("high") is None:
        return _number(card.get("quality"), "{:.1%}")
    return f"{card['quality']:.1%} [{card['low']:.1%}, {card['high']:.1%}]"


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
