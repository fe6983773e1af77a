"""When answers are a closed set, by definition and on real traffic."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.database.policy import meaning
from tasks.curate import CurateSpec, curate
from tasks.dataset import answers
from tasks.dataset.answers import Answers
from tasks.ingest import ingest
from tasks.sources import JSONL


def words(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(arguments: str, id: str = "call_1") -> dict[str, Any]:
    made = {"id": id, "type": "function", "function": {"name": "off", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def counted(rows: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    seen = Answers()
    for split, answer in rows:
        seen.add(split, answer)
    return seen.report()


SPLITS = st.sampled_from(["train", "train", "train", "validation", "holdout"])
ANSWERS = st.one_of(st.sampled_from("abcdef").map(words), st.sampled_from(['{"a":1}', '{ "a": 1 }']).map(call))


@given(st.lists(st.tuples(SPLITS, ANSWERS), min_size=1, max_size=80))
def test_it_counts_what_a_person_would(rows: list[tuple[str, dict[str, Any]]]) -> None:
    rows = sorted(rows, key=lambda row: row[0] == "holdout")
    trained = [meaning(answer) for split, answer in rows if split == "train"]
    later = [meaning(answer) in trained for split, answer in rows if split == "holdout"]
    share = sum(later) / max(1, len(later))
    closed = len(set(trained)) >= 2 and len(trained) >= 5 * len(set(trained)) and share >= 0.95
    assert counted(rows) == {"closed": closed, "distinct": len(set(trained)), "covered": round(share, 4)}


def test_a_call_is_what_it_means() -> None:
    rows = [("train", call('{"a":1,"b":2}', f"c{i}")) for i in range(5)] + [("train", call('{"b": 2, "a": 1}', "x"))]
    assert counted([*rows, ("holdout", call('{"a": 1, "b": 2}'))])["distinct"] == 1


def test_free_text_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST", 10)
    seen = Answers()
    for number in range(1000):
        seen.add("train", words(str(number % 500)))
    seen.add("holdout", words("1"))
    assert len(seen._known) == 11 and seen.report() == {"closed": False, "distinct": 11, "covered": 1.0}


@pytest.mark.parametrize(("name", "closed"), [("fsi_news", True), ("tensorzero", False)])
def test_on_real_traffic(home: Path, shared: Path, name: str, closed: bool) -> None:
    """News by category is a closed set, extracted entities are not."""
    files = [str(file) for file in sorted((shared / name).rglob("*telemetry*"))]
    ingest(JSONL(paths=tuple(files)))
    workload = {"fsi_news": "news_classifier", "tensorzero": "extract_entities"}[name]
    assert curate(workload, CurateSpec())["answers"]["closed"] is closed
