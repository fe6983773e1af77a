"""A frozen dataset: no leaks, nothing unaccounted for, the same for the same rows."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select

from infra.database.records import parse
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Candidate, Dataset, DatasetItem, Interaction, Student, Verdict, now
from infra.prefix import Prefix
from infra.settings import SetupError
from tasks.curate import CurateSpec, curate, load
from tasks.dataset.frozen import SPLITS
from tasks.ingest import ingest
from tasks.sources.jsonl import JSONL
from tests.conftest import living_in

SYSTEM = {"role": "system", "content": "Answer with one word."}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
WORDS = "amber birch cedar delta ember fjord grove heron inlet jetty knoll larch maple north ocean pearl quarry".split()
SPEC = CurateSpec(min_rows=10)


def question(n: int) -> str:
    rng = random.Random(n)
    return " ".join(rng.sample(WORDS, 6))


def record(n: int, at: int | None = None, **more: Any) -> dict[str, Any]:
    messages = [SYSTEM, {"role": "user", "content": question(n)}]
    answer = {"model": "teacher", "choices": [{"message": {"role": "assistant", "content": f"answer {n}"}}]}
    return {
        "id": f"r{n}", "timestamp": 1_756_000_000 + 60 * (n if at is None else at), "workload_id": "w",
        "conversation_id": f"c{n}", "request": {"messages": messages, "tools": [TOOL]}, "response": answer, **more,
    }  # fmt: skip


def thumb(n: int, value: Any = 1, kind: str = "thumb", **more: Any) -> dict[str, Any]:
    return {"record_id": f"r{n}", "timestamp": 1_756_000_000, "kind": kind, "value": value, **more}


def put(*records: dict[str, Any]) -> None:
    with session() as db:
        assert set(store(db, [parse(r, source="jsonl", at=now()) for r in records])) <= {"stored"}


def by_student(n: int, **more: Any) -> dict[str, Any]:
    answer = {"model": "flywheel:w/1", "choices": [{"message": {"role": "assistant", "content": f"student {n}"}}]}
    return record(n, response=answer, **more)


def rows(result: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    dataset = load(result["dataset_id"])
    found = [row for name in names or ("train", "validation", "holdout") for row in dataset.split(name)]
    return {row["record"].removeprefix("jsonl:"): row for row in found}


def accounted(result: dict[str, Any]) -> bool:
    kept = sum(result[name] for name in SPLITS)
    return bool(result["interactions"] == kept + sum(result["left_out"].values()))


def test_rows_are_what_the_contract_says(database: str) -> None:
    put(*(record(n) for n in range(40)), thumb(3), thumb(5, "better 5", "correction"))
    result = curate("w", SPEC)
    assert (result["train"], result["validation"], result["holdout"]) == (28, 2, 10) and accounted(result)
    found = rows(result)
    plain = found["r1"]
    assert plain["messages"] == [{"role": "user", "content": question(1)}] and plain["tools"] is None
    assert plain["expected"] == plain["logged"] == {"role": "assistant", "content": "answer 1"}
    assert (plain["origin"], plain["weight"], plain["rejected"], plain["conversation"]) == ("logged", 1.0, None, "c1")
    assert plain["at"] == "2025-08-24T01:47:40+00:00" and found["r3"]["weight"] == 1.5
    corrected = found["r5"]
    assert (corrected["origin"], corrected["weight"]) == ("correction", 2.0)
    assert corrected["expected"]["content"] == "better 5" and corrected["rejected"]["content"] == "answer 5"
    with session(write=False) as db:
        items = {i: s for i, s in db.execute(select(DatasetItem.interaction_id, DatasetItem.split))}
        assert (
            items.keys() == {row["interaction_id"] for row in found.values()} == set(db.scalars(select(Interaction.id)))
        )
        assert db.get(Dataset, result["dataset_id"]).spec["min_rows"] == 10


def test_an_objection_keeps_an_answer_out_of_training_and_of_the_holdout(home: Path) -> None:
    put(*(record(n) for n in range(40)), thumb(2, -1), thumb(39, -1), thumb(38, -1), thumb(38, "right", "correction"))
    result = curate("w", SPEC)
    assert not {"r2", "r39"} & rows(result).keys() and accounted(result)
    assert rows(result, "holdout")["r38"]["expected"]["content"] == "right"
    assert result["left_out"] == {"an answer that was objected to": 1}, "r39, from the holdout's time"
    (disliked,) = rows(result, "disliked").items()
    assert disliked[0] == "r2" and disliked[1]["rejected"]["content"] == "answer 2"
    assert disliked[1]["expected"] is None and disliked[1]["messages"][0]["content"] == question(2)


def test_a_disliked_answer_that_is_near_what_measures_is_left_out(home: Path) -> None:
    near = record(1, id="near", at=1)
    near["request"]["messages"][1]["content"] = question(39).upper() + "!"
    put(*(record(n) for n in range(40)), near, record(50, at=2, conversation_id="c39"), record(51, at=3))
    put({**thumb(0, -1), "record_id": "near"}, thumb(50, -1), thumb(51, -1))
    first = curate("w", SPEC)
    assert rows(first, "disliked").keys() == {"r51"} and "r39" in rows(first, "holdout")
    assert first["left_out"]["an answer that was objected to"] == 2 and accounted(first)
    late = record(60, at=100)
    late["request"]["messages"][1]["content"] = f"{question(51)} ..."
    put(*(record(n, at=n + 40) for n in range(61, 72)), late, thumb(39, -1))
    second = rows(curate("w", SPEC), "disliked")
    assert not second.keys(), "r51 is near r60, which measures now, and r39 measured before"


def test_disliked_answers_are_part_of_what_is_hashed(home: Path) -> None:
    put(*(record(n) for n in range(40)), thumb(2, -1), thumb(3, -1))
    first = curate("w", SPEC)
    (Path(first["path"]) / "disliked.parquet").unlink()
    with pytest.raises(SetupError, match=r"disliked.parquet is missing"):
        load(first["dataset_id"])
    put(record(2, id="other", conversation_id="other", response=record(99)["response"]))
    put({**thumb(2, -1), "record_id": "other"})
    second = curate("w", SPEC)
    assert second["dataset_id"] != first["dataset_id"] and (first["disliked"], second["disliked"]) == (2, 3)
    assert rows(second).keys() == {f"r{n}" for n in range(40)} - {"r2", "r3"}


def test_what_is_said_of_a_conversation_counts_where_it_has_one_answer(home: Path) -> None:
    whole = [{**thumb(n, -1, target="episode"), "record_id": c} for n, c in ((1, "c1"), (2, "c2"))]
    put(*(record(n) for n in range(40)), record(50, at=2, conversation_id="c2"), *whole)
    found = rows(curate("w", SPEC))
    assert "r1" not in found and {"r2", "r50"} <= found.keys()


def test_exact_duplicates_are_one_row_and_what_is_said_of_one_is_said_of_all(home: Path) -> None:
    copies = [record(n, id=f"copy{n}", at=n + 1, conversation_id=f"copy{n}") for n in (1, 2)]
    put(*(record(n) for n in range(40)), *copies, {**thumb(0, -1), "record_id": "copy1"})
    result = curate("w", SPEC)
    assert result["left_out"] == {"exact duplicate": 2} and rows(result, "disliked").keys() == {"r1"}
    assert "r1" not in rows(result) and "r2" in rows(result) and "copy2" not in rows(result)


def test_near_duplicates_of_holdout_items_leave_train(home: Path) -> None:
    near = record(1)
    near["request"]["messages"][1]["content"] = question(39).upper() + "!"
    put(*(record(n) if n != 1 else near for n in range(40)))
    result = curate("w", SPEC)
    assert "r1" not in rows(result) and "r39" in rows(result, "holdout")
    assert result["left_out"] == {"near a holdout item": 1}


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "overloaded"}},
        {"choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"tool_calls": [{"function": {"name": "look_up", "arguments": "{"}}]}}]},
    ],
)
def test_rows_without_a_usable_answer_are_counted(home: Path, answer: dict[str, Any]) -> None:
    put(*(record(n) for n in range(39)), record(39, response=answer))
    assert curate("w", SPEC)["left_out"] == {"no usable answer": 1}


def test_a_students_answer_without_a_teacher_needs_someone_to_vouch_for_it(home: Path) -> None:
    put(*(record(n) for n in range(30)), *(by_student(n) for n in range(30, 40)))
    put(thumb(31), thumb(32, "right", "correction"), thumb(33, -1))
    result = curate("w", SPEC)
    assert {n for n in rows(result) if int(n[1:]) >= 30} == {"r31", "r32"} and accounted(result)
    assert result["left_out"] == {"a student's answer that nobody vouches for": 7, "an answer that was objected to": 1}


def test_a_students_answer_is_asked_of_the_teacher_again_and_once(tmp_path: Path, endpoint: Any) -> None:
    with living_in(tmp_path / "home", TEACHER=endpoint.url):
        put(*(record(n) for n in range(30)), *(by_student(n) for n in range(30, 40)))
        put(thumb(32, "right", "correction"), thumb(33, -1), thumb(34, 1))
        first = curate("w", SPEC)
        found = rows(first)
        assert first["origins"] == {"correction": 1, "logged": 30, "relabelled": 9} and accounted(first)
        assert {found[f"r{n}"]["expected"]["content"] for n in (30, 33, 34)} == {"the teacher says"}
        assert found["r33"]["rejected"]["content"] == "student 33" and found["r30"]["logged"]["content"] == "student 30"
        assert len(endpoint.asked) == 9 and all(body["messages"][0] == SYSTEM for body in endpoint.asked)
        assert curate("w", SPEC)["dataset_id"] == first["dataset_id"] and len(endpoint.asked) == 9
        put(by_student(40))
        curate("w", SPEC)
        assert len(endpoint.asked) == 10


def test_a_disliked_answer_that_the_teacher_repeats_is_left_out(tmp_path: Path, endpoint: Any) -> None:
    answer = {"model": "flywheel:w/1", "choices": [{"message": {"content": "the teacher says"}}]}
    with living_in(tmp_path / "home", TEACHER=endpoint.url):
        put(*(record(n) for n in range(39)), record(39, response=answer), thumb(39, -1))
        assert curate("w", SPEC)["left_out"] == {"the teacher gave no usable answer": 1}


def test_the_shared_prefix_is_baked_and_comes_back(home: Path) -> None:
    other = record(7)
    other["request"]["messages"][0] = {"role": "system", "content": "Answer in verse."}
    put(*(record(n) if n != 7 else other for n in range(40)))
    result = curate("w", SPEC)
    dataset = load(result["dataset_id"])
    assert dataset.prefix == Prefix("Answer with one word.", (TOOL,)) and result["left_out"] == {
        "another prefix than the baked one": 1
    }
    for row in dataset.split("train"):
        n = int(row["record"].removeprefix("jsonl:r"))
        assert dataset.prefix.restore(row["messages"]) == (record(n)["request"]["messages"], [TOOL])
    assert 0 < result["prompt_characters_read"] < result["prompt_characters"] and result["prompt_saved"] > 0.4


def test_without_baking_rows_carry_everything(home: Path) -> None:
    put(*(record(n) for n in range(40)))
    dataset = load(curate("w", CurateSpec(min_rows=10, bake=False))["dataset_id"])
    row = dataset.split("train")[0]
    assert dataset.prefix is None and row["tools"] == [TOOL] and row["messages"][0] == SYSTEM
    assert dataset.report["prompt_saved"] == 0


def test_a_prefix_that_too_few_share_is_not_baked(home: Path) -> None:
    others = [record(n) for n in range(40)]
    for n in range(4):
        others[n]["request"]["messages"][0] = {"role": "system", "content": f"Secret {n}."}
    put(*others)
    result = curate("w", SPEC)
    assert result["prefix"] is None and result["prefix_share"] == 0.9 and accounted(result)


def test_the_same_rows_in_any_order_and_database_are_the_same_dataset(tmp_path: Path, postgres: str) -> None:
    from tests.conftest import new_database

    records = [*(record(n) for n in range(60)), *(thumb(n, -1) for n in range(0, 60, 9)), thumb(4, "x", "correction")]
    ids = set()
    for n, database in enumerate(["", "", new_database(postgres)]):
        shuffled = random.Random(n).sample(records, len(records))
        with living_in(tmp_path / str(n), TEACHER="", **({"DATABASE": database} if database else {})):
            for start in range(0, len(shuffled), 9):  # one call would be stored in the order of ids
                put(*shuffled[start : start + 9])
            first, again = curate("w", SPEC), curate("w", SPEC)
            assert first == again
            ids.add(first["dataset_id"])
            other = curate("w", CurateSpec(min_rows=10, seed=1))["dataset_id"]
            assert other not in ids
    assert len(ids) == 1


def test_what_a_killed_run_left_of_a_dataset_is_cleared_away(home: Path) -> None:
    put(*(record(n) for n in range(60)))
    found = Path(curate("w", SPEC)["path"])
    nobody = 2**22 + 1  # above any process number Linux gives
    left, others = found.with_name(f"{nobody}.0.partial"), found.with_name("1.0.partial")
    for folder in (left, others):
        folder.mkdir()
    (found / "train.parquet").unlink()  # so that it is frozen again
    curate("w", SPEC)
    assert not left.exists() and others.exists()


def test_a_holdout_item_never_becomes_training_data(home: Path) -> None:
    put(*(record(n) for n in range(80)))
    first = curate("w", SPEC)
    held_out = {row["interaction_id"] for row in rows(first, "holdout").values()}
    near = record(200, at=100)
    near["request"]["messages"][1]["content"] = f"{question(79)} ..."
    put(*(record(n) for n in range(80, 160)), near)
    second = curate("w", SPEC)
    trained = {row["interaction_id"] for row in rows(second, "train", "validation").values()}
    assert second["dataset_id"] != first["dataset_id"] and accounted(second)
    assert held_out and not held_out & trained and "r200" not in rows(second, "train", "validation")
    assert second["left_out"]["held out in an earlier dataset"] == len(held_out)


def test_a_dataset_whose_files_are_gone_is_refused_and_frozen_again(home: Path) -> None:
    put(*(record(n) for n in range(40)))
    result = curate("w", SPEC)
    file = Path(result["path"]) / "train.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SetupError, match=r"train.parquet is missing or was changed"):
        load(result["dataset_id"])
    file.unlink()
    assert curate("w", SPEC) == result and len(load(result["dataset_id"]).split("train")) == result["train"]
    assert sorted(path.name for path in (home / "datasets").iterdir()) == [result["dataset_id"]]


def test_unknown_and_too_small_are_one_line(home: Path) -> None:
    with pytest.raises(SetupError, match=r"'nobody' has no traffic; known are none yet"):
        curate("nobody", SPEC)
    put(*(record(n) for n in range(9)), thumb(0, -1))
    with pytest.raises(SetupError, match=r"'nobody' has no traffic; known are w$"):
        curate("nobody", SPEC)
    with pytest.raises(SetupError, match=r"8 usable rows, under min_rows=10, of 9 interactions .*objected to: 1"):
        curate("w", SPEC)
    with pytest.raises(SetupError, match=r"dataset 'x' is unknown"):
        load("x")


def test_one_conversation_cannot_be_split(home: Path) -> None:
    put(*(record(n, conversation_id="only") for n in range(40)))
    with pytest.raises(SetupError, match=r"0 for holdout .*began before the holdout: 10"):
        curate("w", SPEC)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 9), st.integers(0, 60), st.booleans()), min_size=12, max_size=40
    ),
    st.floats(0.1, 0.6),
    st.floats(0, 0.5),
)
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_splits_are_disjoint_whatever_the_traffic(
    drawn: list[tuple[int, int, int, bool]], holdout: float, validation: float
) -> None:
    with tempfile.TemporaryDirectory() as folder, living_in(Path(folder), TEACHER=""):
        records = [
            record(asked, at=at, id=f"r{n}", conversation_id=f"c{conversation}")
            for n, (asked, conversation, at, _) in enumerate(drawn)
        ]
        for n, r in enumerate(records):
            r["response"]["choices"][0]["message"]["content"] = f"answer {n}"
        put(*records, *(thumb(n, -1) for n, (_, _, _, disliked) in enumerate(drawn) if disliked and n % 3 == 0))
        try:
            result = curate("w", CurateSpec(min_rows=4, holdout=holdout, validation=validation))
        except SetupError as problem:
            assert "too small to split" in str(problem)
            return
        assert accounted(result)
        parts = [rows(result, name).values() for name in SPLITS]
        for mark in (
            lambda row: row["conversation"],
            lambda row: json.dumps(row["messages"]),
            lambda row: row["record"],
        ):
            marks = [{mark(row) for row in part} for part in parts]
            assert not marks[0] & marks[1] and not marks[0] & marks[2] and not marks[1] & marks[2]
            assert not marks[3] & marks[1] and not marks[3] & marks[2]
        earlier = [row["at"] for part in (*parts[:2], parts[3]) for row in part]
        assert max(earlier) <= min(row["at"] for row in parts[2])


@pytest.mark.parametrize(
    ("name", "workload", "least"), [("banking77", "bank.intent_router", 9400), ("snips", "home.assistant", 5700)]
)
def test_real_traffic_is_curated_to_the_row(home: Path, shared: Path, name: str, workload: str, least: int) -> None:
    folder = shared / name
    ingest(JSONL((str(folder / "telemetry.jsonl.gz"), str(folder / "feedback.jsonl"))))
    result = curate(workload, CurateSpec())
    assert accounted(result) and result["train"] + result["validation"] + result["holdout"] >= least
    assert result["left_out"]["near a holdout item"] < 0.05 * result["interactions"]
    assert result["prompt_saved"] > 0.5 and result["prefix_share"] == 1


def test_a_holdout_that_is_used_up_measures_no_more_and_a_fresh_one_is_cut(database: str) -> None:
    put(*(record(n) for n in range(60)))
    spec = CurateSpec(min_rows=10, looks=2)
    first = curate("w", spec)
    old = {row["interaction_id"] for row in load(first["dataset_id"]).split("holdout")}
    with session() as db:
        db.add(Student(id="s", dataset_id=first["dataset_id"], path="", report={}, spec={}))
    for name, family in (("a", 1), ("b", 0), ("c", 1)):
        with session() as db:
            db.add(
                Candidate(id=name, student_id="s", name=name, format="gguf", path="", artifact_hash="", size=1, spec={})
            )
            db.flush()
            db.add(
                Verdict(
                    id=name, workload="w", dataset_id=first["dataset_id"], candidate_id=name, reference="teacher",
                    outcome="reject", reasons={"family": family}, spec={},
                )
            )  # fmt: skip
        if name == "b":
            assert curate("w", spec)["dataset_id"] == first["dataset_id"], "one look of two: nothing was compared of b"
    second = curate("w", spec)
    assert second["left_out"]["in a holdout that is used up"] == len(old) == 15 and accounted(second)
    dataset = load(second["dataset_id"])
    fresh = {row["interaction_id"] for row in dataset.split("holdout")}
    trains = {row["interaction_id"] for name in ("train", "validation") for row in dataset.split(name)}
    assert fresh and not fresh & old and not trains & (fresh | old)


def test_a_label_that_is_one_of_the_answers_is_gold_in_the_holdout_and_to_learn_from(home: Path) -> None:
    def routed(n: int) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "shipping" if n % 2 else "money"}
        return record(n, response={"model": "teacher", "choices": [{"message": answer}]})

    put(*(routed(n) for n in range(40)))
    put(thumb(3, "money", "label"), thumb(39, "money", "label"), thumb(38, "money", "label"), thumb(37, "x", "label"))
    result = curate("w", SPEC)
    found = rows(result)
    assert [(found[f"r{n}"]["expected"]["content"], found[f"r{n}"]["origin"]) for n in (3, 39, 38, 37)] == [
        ("money", "label"), ("money", "label"), ("money", "label"), ("shipping", "logged")
    ]  # fmt: skip
    assert result["feedback"]["label"] == 3 and found["r3"]["weight"] == 2.0
    assert found["r3"]["rejected"]["content"] == "shipping" and found["r38"]["rejected"] is None
