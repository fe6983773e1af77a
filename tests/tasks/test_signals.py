"""What starts a wheel: enough new feedback, requests that have moved, a champion that people object to more."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from infra.database.records import feedback, interaction
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Candidate, Dataset, DatasetItem, Interaction, Promotion, Student, Verdict, now
from infra.registry import served_name
from tasks.signals import SignalSpec, due, signals, told

AT = datetime(2026, 9, 1, tzinfo=UTC)
MADE: dict[str, Any] = {"spec": {}, "created": AT + timedelta(hours=5)}
NOUNS = "order parcel refund invoice address coupon delivery account".split()
NEWS = "zeppelin kaleidoscope bouillabaisse glockenspiel quagmire xylophone vermicelli".split()


def call(n: int, words: list[str], model: str = "big", length: int = 6) -> Any:
    picked = np.random.default_rng(n).choice(words, length)
    said = {
        "id": f"r{n}", "conversation_id": f"c{n}", "workload_id": "w",
        "timestamp": (AT + timedelta(minutes=n)).timestamp(),
        "request": {"model": "w", "messages": [{"role": "user", "content": " ".join(picked)}]},
        "response": {"model": model, "choices": [{"message": {"role": "assistant", "content": "ok"}}]},
    }  # fmt: skip
    return interaction(said, source="jsonl", at=AT)


def thumb(n: int, value: int) -> Any:
    said = {"id": f"f{n}", "record_id": f"r{n}", "kind": "thumb", "value": value}
    return feedback(said, source="jsonl", at=AT + timedelta(minutes=n))


def stored(*rows: Any) -> None:
    with session() as db:
        store(db, rows)


def champion_of(first: int, last: int) -> None:
    """Version 1 serves, by a verdict on a dataset of these interactions; the dataset is frozen now."""
    with session() as db:
        ids = [row.id for row in db.query(Interaction) if first <= int(row.external_id[1:]) < last]
        db.add(Dataset(id="d1", workload="w", path="", report={}, **{**MADE, "created": now()}))
        db.flush()
        db.add_all(DatasetItem(dataset_id="d1", interaction_id=i, split="train") for i in ids)
        db.add(Student(id="s1", dataset_id="d1", path="", report={}, **MADE))
        db.flush()
        db.add(Candidate(id="k1", student_id="s1", name="x", format="gguf", path="", artifact_hash="", size=1, **MADE))
        db.flush()
        db.add(Verdict(id="v1", workload="w", dataset_id="d1", candidate_id="k1", reference="teacher",
                       outcome="promote", reasons={}, model_version="1", **MADE))  # fmt: skip
        db.flush()
        db.add(Promotion(workload="w", number=1, version="1", replaced=None, by="release", noticed="flow", reason="",
                         verdict_id="v1", flow_run_id=None, at=AT + timedelta(minutes=last)))  # fmt: skip


def fired(spec: SignalSpec = SignalSpec()) -> dict[str, bool]:  # noqa: B008
    return {one["name"]: one["fired"] for one in signals("w", spec)}


def test_without_any_traffic_nothing_fires(database: str) -> None:
    assert fired() == {"quality": False, "drift": False, "feedback": False}


def test_feedback_counts_from_the_last_dataset_on_and_only_the_workloads_own(database: str) -> None:
    stored(*(call(n, NOUNS) for n in range(30)), *(thumb(n, 1) for n in range(20)))
    stored(feedback({"id": "x", "record_id": "elsewhere", "kind": "thumb", "value": 1}, source="jsonl", at=AT))
    spec = SignalSpec(feedback=20)
    assert fired(spec)["feedback"]
    assert not fired(SignalSpec(feedback=21))["feedback"]
    champion_of(0, 30)
    assert not fired(spec)["feedback"], "what the dataset has seen is not new"
    stored(*(thumb(n, -1) for n in range(20, 30)))
    assert fired(SignalSpec(feedback=10))["feedback"]


@pytest.mark.parametrize(
    ("words", "length", "moved"),
    [(NOUNS, 6, False), (NOUNS[:4] + NEWS[:4], 6, True), (NOUNS, 12, True)],
    ids=["the same", "other words", "longer"],
)
def test_drift_is_seen_in_words_and_in_length_and_nowhere_else(
    home: Any, words: list[str], length: int, moved: bool
) -> None:
    stored(*(call(n, NOUNS) for n in range(400)))
    champion_of(0, 400)
    stored(*(call(n, words, length=length) for n in range(400, 600)))
    assert fired() == {"quality": False, "drift": moved, "feedback": False}


def test_few_requests_are_no_drift_and_it_says_how_many_are_asked_for(home: Any) -> None:
    stored(*(call(n, NOUNS) for n in range(400)))
    champion_of(0, 400)
    stored(*(call(n, NEWS) for n in range(400, 420)))
    assert not fired()["drift"]
    assert "20 since" in next(one["said"] for one in signals("w") if one["name"] == "drift")


@pytest.mark.parametrize(("share", "fell"), [(0.05, False), (0.20, True)])
def test_quality_fell_where_more_of_the_champions_answers_are_objected_to(home: Any, share: float, fell: bool) -> None:
    stored(*(call(n, NOUNS) for n in range(200)))
    champion_of(0, 200)
    ours = served_name("w", "1")
    stored(*(call(n, NOUNS, ours) for n in range(200, 1000)))
    stored(*(call(n, NOUNS, "teacher") for n in range(1000, 1200)), *(thumb(n, -1) for n in range(1000, 1200)))
    first = [thumb(n, -1) for n in range(200, 600) if n % 20 == 0]
    late = [thumb(n, -1) for n in range(600, 1000) if n % round(1 / share) == 0]
    stored(*first, *late)
    assert fired(SignalSpec(sample=400, feedback=1000))["quality"] == fell


def test_one_signal_starts_a_wheel_once_within_its_cool_down(home: Any) -> None:
    stored(*(call(n, NOUNS) for n in range(30)), *(thumb(n, 1) for n in range(20)))
    spec = SignalSpec(feedback=20)
    found = due("w", signals("w", spec), spec)
    assert found is not None and found["name"] == "feedback" and "20 pieces" in found["said"]
    told("w", found)
    assert due("w", signals("w", spec), spec) is None
    again = SignalSpec(feedback=20, cool_down=0)
    assert due("w", signals("w", again), again) is not None
