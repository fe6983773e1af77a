"""What a scorecard holds: rates with their intervals, by slice, and each item's answer and result in Parquet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tasks.metrics import METRICS
from tasks.metrics.exact_match import exact_match, words
from tasks.metrics.tool_call import calls, parts, summary, tool_call
from tasks.proportions import wilson

Message = dict[str, Any]
TOP_SLICES = 12


class Item(NamedTuple):
    """One holdout item of a scorecard, as the gate reads it."""

    interaction_id: int
    conversation: str
    slices: tuple[str, ...]
    right: bool


def score(rows: Sequence[dict[str, Any]], answers: Sequence[Message], metric: str) -> tuple[dict[str, Any], list[Item]]:
    """Metrics over holdout rows, whole and by slice, and each item's result.

    Slices follow what is expected: `calls` or `words`, `tool:<name>` for each function called, and `answer:<text>` for
    texts expected at least five times; of the last two kinds the most frequent dozen each. Intervals are Wilson's at
    95 % for each share by itself; they take items as independent.
    """
    common = _frequent(rows)
    judge = METRICS[metric]
    items, scores, exact, called = [], [], 0, 0
    for row, answer in zip(rows, answers, strict=True):
        expected = row["expected"]
        slices = tuple(name for name in _slices(expected) if name in common)
        items.append(Item(row["interaction_id"], row["conversation"], slices, judge(answer, expected)))
        scores.append(parts(answer, expected))
        exact += exact_match(answer, expected)
        called += tool_call(answer, expected)
    n = len(items)
    by_slice = {name: _rate([i for i in items if name in i.slices]) for name in sorted(common)}
    shares = {"exact_match": exact / n if n else None, "tool_call": called / n if n else None, **summary(scores)}
    return {"metric": metric, **_rate(items), **shares, "slices": by_slice}, items


def write_items(path: Path, rows: Sequence[dict[str, Any]], answers: Sequence[Message], items: Sequence[Item]) -> None:
    """Each item's result, its answer as JSON, and its sub-scores as one Parquet file."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    records = []
    for row, answer, item in zip(rows, answers, items, strict=True):
        whole = {name: METRICS[name](answer, row["expected"]) for name in METRICS}
        records.append(
            {**item._asdict(), "answer": json.dumps(answer), **whole, **asdict(parts(answer, row["expected"]))}
        )
    names = pa.list_(pa.string())
    text = [("conversation", pa.string()), ("slices", names), ("answer", pa.string())]
    truths = [(name, pa.bool_()) for name in ("right", *METRICS, "due", "made", "name", "arguments")]
    schema = pa.schema([("interaction_id", pa.int64()), *text, *truths])
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(records, schema=schema), path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def read_items(path: Path) -> list[Item]:
    """The items of a scorecard, as `write_items` wrote them."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    columns = parquet.read_table(path, columns=list(Item._fields)).to_pylist()
    return [Item(r["interaction_id"], r["conversation"], tuple(r["slices"]), r["right"]) for r in columns]


def read_answers(path: Path) -> list[Message]:
    """The answers of a scorecard, in the order of the holdout."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    return [json.loads(answer) for answer in parquet.read_table(path, columns=["answer"])["answer"].to_pylist()]


def _slices(expected: Message) -> list[str]:
    """The slices an item would be in if each were kept."""
    names = sorted({name for name, _ in calls(expected)})
    if names:
        return ["calls", *(f"tool:{name}" for name in names)]
    return ["words", f"answer:{words(expected)[:64]}"]


def _frequent(rows: Sequence[dict[str, Any]]) -> set[str]:
    """The slices that are kept: a bounded number, whatever the traffic."""
    counts = Counter(name for row in rows for name in _slices(row["expected"]))
    tools = [name for name, _ in counts.most_common() if name.startswith("tool:")][:TOP_SLICES]
    answers = [name for name, n in counts.most_common() if name.startswith("answer:") and n >= 5][:TOP_SLICES]
    return {name for name in ("calls", "words") if name in counts} | set(tools) | set(answers)


def _rate(items: Sequence[Item]) -> dict[str, Any]:
    right = sum(item.right for item in items)
    low, high = wilson(right, len(items))
    return {"n": len(items), "quality": right / len(items) if items else None, "low": low, "high": high}
