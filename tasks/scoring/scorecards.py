"""What a scorecard holds: values with their intervals, by slice and by yardstick, and each item's answer in Parquet.

The yardstick of an item is who said what is expected: a person's label (gold), a person's correction, or the teacher,
whose answer it is. The first two outrank the third wherever they are (`infra/database/policy.py`), and each number says
how many of its items were held against which.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tasks.gate.bootstrap import Drawn
from tasks.gate.proportions import effective, wilson
from tasks.metrics import Answered, Metric, Score, ToolCall
from tasks.metrics.exact_match import words
from tasks.metrics.tool_call import calls, summary

Message = dict[str, Any]
TOP_SLICES = 12
YARDSTICKS = {"label": "gold label", "correction": "correction"}  # by a row's origin
TEACHER = "teacher's answer"
CALLS = ToolCall()


class Item(NamedTuple):
    """One holdout item of a scorecard, as the gate reads it.

    Attributes:
        value: By the scorecard's metric, from 0 to 1.
        yardstick: What it was held against.
        evidence: What more the metric needs (`metrics.Score`).
    """

    interaction_id: int
    conversation: str
    slices: tuple[str, ...]
    value: float
    yardstick: str = TEACHER
    evidence: tuple[float, ...] = ()

    @property
    def score(self) -> Score:
        return Score(self.value, self.evidence)


def score(
    answered: Sequence[Answered], metric: Metric, beside: Sequence[Metric] = ()
) -> tuple[dict[str, Any], list[Item]]:
    """What answers come to by a metric, whole and by slice, and by others beside it; and each item's result.

    Slices follow what is asked and expected: `calls` or `words`, `tool:<name>` for each function called,
    `answer:<text>` for texts expected at least five times (of the last two kinds the most frequent dozen each),
    `turn:first` or `turn:later`, `request:short`, `:medium` or `:long` by thirds, and `yardstick:<name>`. An item of
    which the metric says nothing is left out. Intervals are at 95 %, each for its number by itself: Wilson's of a
    share, which takes items as independent, else BCa's, of the whole alone.
    """
    slices = slices_of([one.row for one in answered])
    items = [
        Item(
            one.row["interaction_id"], one.row["conversation"], inside, found.value, yardstick(one.row), found.evidence
        )
        for one, inside, found in zip(answered, slices, metric.scores(answered), strict=True)
        if found is not None
    ]  # fmt: skip
    names = sorted({name for item in items for name in item.slices})
    by_slice = {name: _rate([i for i in items if name in i.slices], metric) for name in names}
    metrics = {
        "metric": asdict(metric),  # type: ignore[call-overload]  # every metric is a dataclass
        **_rate(items, metric), **_interval(items, metric), "yardsticks": judged_by(items),
        **{other.name: _mean(other, other.scores(answered)) for other in beside},
        **summary([CALLS.parts(one) for one in answered]), "slices": by_slice,
    }  # fmt: skip
    return metrics, items


def yardstick(row: Mapping[str, Any]) -> str:
    return YARDSTICKS.get(row.get("origin", ""), TEACHER)


def judged_by(items: Iterable[Item]) -> dict[str, int]:
    """How many items were held against which yardstick, the people's first."""
    counts = Counter(item.yardstick for item in items)
    return {name: counts[name] for name in (*YARDSTICKS.values(), TEACHER) if counts[name]}


def value_of(metric: Metric, scores: Sequence[Score]) -> float | None:
    """What scores come to; None without any."""
    return float(metric.together(metric.sums(scores).sum(0))) if scores else None


def by_conversation(items: Sequence[Item], sums: Any) -> Any:
    """Sums of items (n, k), in their order, as sums of conversations (c, k)."""
    import numpy as np

    numbers = {name: n for n, name in enumerate(dict.fromkeys(item.conversation for item in items))}
    whole = np.zeros((len(numbers), sums.shape[1]))
    np.add.at(whole, [numbers[item.conversation] for item in items], sums)
    return whole


def write_items(path: Path, answered: Sequence[Answered], items: Sequence[Item]) -> None:
    """Each item's result, its answer as JSON, and how its calls did, as one Parquet file.

    An answer of which the metric says nothing is there without a value.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    found = {item.interaction_id: item for item in items}
    records = []
    for one in answered:
        number = one.row["interaction_id"]
        item = found.get(number)
        known = item._asdict() if item else {"interaction_id": number, "conversation": one.row["conversation"]}
        records.append({**known, "answer": json.dumps(one.answer), **asdict(CALLS.parts(one))})
    names, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    schema = pa.schema(
        [
            ("interaction_id", pa.int64()), ("conversation", pa.string()), ("slices", names), ("value", pa.float64()),
            ("yardstick", pa.string()), ("evidence", numbers), ("answer", pa.string()),
            *((name, pa.bool_()) for name in ("due", "made", "function", "arguments")), ("share", pa.float64()),
        ]
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(records, schema=schema), path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def read_items(path: Path) -> list[Item]:
    """The items of a scorecard, as `write_items` wrote them; none of a file that an earlier version wrote."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    if "value" not in parquet.read_schema(path).names:
        return []
    columns = parquet.read_table(path, columns=list(Item._fields)).to_pylist()
    return [
        Item(**{**row, "slices": tuple(row["slices"]), "evidence": tuple(row["evidence"])})
        for row in columns
        if row["value"] is not None
    ]


def read_answers(path: Path) -> list[Message]:
    """The answers of a scorecard, in the order of the holdout."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    return [json.loads(answer) for answer in parquet.read_table(path, columns=["answer"])["answer"].to_pylist()]


def slices_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The slices of each row: a bounded number in all, whatever the traffic."""
    kinds = [_kinds(row["expected"]) for row in rows]
    counts = Counter(name for found in kinds for name in found)
    tools = [name for name, _ in counts.most_common() if name.startswith("tool:")][:TOP_SLICES]
    answers = [name for name, n in counts.most_common() if name.startswith("answer:") and n >= 5][:TOP_SLICES]
    common = {"calls", "words", *tools, *answers}
    lengths = [len(json.dumps(row.get("messages", []))) for row in rows]
    thirds = [sorted(lengths)[len(lengths) * part // 3] for part in (1, 2)] if rows else []
    return [
        (
            *(name for name in found if name in common),
            f"yardstick:{yardstick(row)}",
            *_shape(row, length, thirds),
        )
        for row, found, length in zip(rows, kinds, lengths, strict=True)
    ]


def _kinds(expected: Message) -> list[str]:
    names = sorted({name for name, _ in calls(expected)})
    if names:
        return ["calls", *(f"tool:{name}" for name in names)]
    return ["words", f"answer:{words(expected)[:64]}"]


def _shape(row: Mapping[str, Any], length: int, thirds: Collection[int]) -> list[str]:
    """Where in its conversation a request stands, and how long it is; nothing of a row without messages."""
    messages = row.get("messages") or []
    if not messages:
        return []
    later = any(message["role"] == "assistant" for message in messages)
    size = ("short", "medium", "long")[sum(length >= edge for edge in thirds)]
    return ["turn:later" if later else "turn:first", f"request:{size}"]


def _mean(metric: Metric, scores: Sequence[Score | None]) -> float | None:
    return value_of(metric, [found for found in scores if found is not None])


def _rate(items: Sequence[Item], metric: Metric) -> dict[str, Any]:
    """How many, what they come to, and Wilson's interval of a share."""
    low = high = None
    if metric.binary:
        low, high = wilson(sum(item.value for item in items), len(items))
    return {"n": len(items), "quality": value_of(metric, [i.score for i in items]), "low": low, "high": high}


def _interval(items: Sequence[Item], metric: Metric) -> dict[str, float]:
    """BCa's interval of what is no share."""
    if metric.binary or not items:
        return {}
    sums = by_conversation(items, metric.sums([item.score for item in items]))
    worth = effective(item.conversation for item in items)
    drawn = Drawn(sums, 0 * sums, lambda s: _or_zero(metric.together(s)), len(items), worth)
    low, high = drawn.bca(0.975)
    return {"low": max(0.0, low), "high": min(1.0, high)}


def _or_zero(values: Any) -> Any:
    import numpy as np

    return np.nan_to_num(values)
