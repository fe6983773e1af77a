import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tasks.metrics import Answered, ExactMatch, Metric, Quality, ToolCall
from tasks.scoring.scorecards import TEACHER, TOP_SLICES, Item, read_items, score, write_items
from tests.tasks.metrics.test_tool_call import calling, saying


def scored(
    rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], metric: Metric
) -> tuple[dict[str, Any], list[Item]]:
    return score(answered(rows, answers), metric, (ExactMatch(), ToolCall()))


def answered(rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[Answered]:
    return [Answered(row, answer) for row, answer in zip(rows, answers, strict=True)]


def row(number: int, expected: dict[str, Any], conversation: str = "") -> dict[str, Any]:
    return {"interaction_id": number, "conversation": conversation or f"c{number}", "expected": expected}


def test_rates_are_given_whole_and_by_slice() -> None:
    due = [calling(("track", {"n": i})) for i in range(6)] + [calling(("refund", {}), ("track", {}))]
    due += [saying("which order?")] * 5 + [saying("once")]
    answers = [
        *due[:5],
        calling(("track", {"n": 99})),
        due[6],
        *[saying("which order?")] * 4,
        calling(("refund", {})),
        saying("x"),
    ]
    metrics, items = scored([row(i, d) for i, d in enumerate(due)], answers, Quality())
    assert (metrics["n"], metrics["quality"]) == (13, pytest.approx(10 / 13))
    assert metrics["low"] < metrics["quality"] < metrics["high"]
    slices = {name: (found["n"], round(found["n"] * found["quality"])) for name, found in metrics["slices"].items()}
    assert slices == {
        "calls": (7, 6), "words": (6, 4), "tool:track": (7, 6), "tool:refund": (1, 1), "answer:which order?": (5, 4),
        "yardstick:teacher's answer": (13, 10),
    }  # fmt: skip
    assert metrics["call_name"] == 1.0 and metrics["call_arguments"] == pytest.approx(6 / 7)
    assert metrics["abstention_recall"] == pytest.approx(5 / 6) and metrics["abstention_precision"] == 1.0
    assert metrics["tool_call"] == pytest.approx(11 / 13) and metrics["exact_match"] == pytest.approx(10 / 13)
    assert items[6].slices == ("calls", "tool:refund", "tool:track", f"yardstick:{TEACHER}")
    assert items[12].slices == ("words", f"yardstick:{TEACHER}"), "a text that is expected once is no slice"


def test_the_metric_decides_what_is_right() -> None:
    rows, answers = [row(0, saying("yes"))], [saying("no")]
    assert [scored(rows, answers, m)[0]["quality"] for m in (Quality(), ExactMatch(), ToolCall())] == [0, 0, 1]


def test_slices_stay_few_whatever_the_traffic() -> None:
    rows = [row(i, saying(f"intent_{i % 77}")) for i in range(800)] + [
        row(1000 + i, calling((f"f{i}", {}))) for i in range(90)
    ]
    metrics, _ = scored(rows, [r["expected"] for r in rows], Quality())
    assert len(metrics["slices"]) == 3 + 2 * TOP_SLICES


def test_items_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    rows = [row(7, calling(("f", {"n": 1})), "long"), row(8, saying("yes"), "long")]
    answers = [calling(("f", {"n": 2})), saying("yes")]
    _, items = scored(rows, answers, Quality())
    path = tmp_path / "card" / "items.parquet"
    write_items(path, answered(rows, answers), items)
    assert read_items(path) == items
    assert [p.name for p in path.parent.iterdir()] == ["items.parquet"]

    wrong, right = pyarrow.parquet.read_table(path).to_pylist()
    assert json.loads(wrong["answer"]) == answers[0]
    parts = ("value", "due", "made", "function", "arguments", "share")
    assert [wrong[part] for part in parts] == [0.0, True, True, True, False, 0.5]
    assert [right[part] for part in parts] == [1.0, False, False, None, None, None]
