"""Which answers of a dataset are pairs and thumbs, and that they are read as they are trained on and served."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.engines.chat import load_tokenizer
from infra.settings import SetupError
from tasks.curate import CurateSpec, curate, load
from tasks.dataset.frozen import Dataset
from tasks.lessons import DPO, KTO
from tasks.lessons.preferences import last_checkpoint, pairs, thumbs
from tasks.training.examples import encode
from tests.tasks.test_curate import put, record, thumb

CALL = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "amber"}'}}],
}  # fmt: skip


def again(n: int, name: str, answer: str) -> dict[str, Any]:
    """The request of `record(n)` in another conversation, with another answer."""
    said = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
    return record(n, id=name, conversation_id=name, response=said)


def frozen(*more: dict[str, Any]) -> Dataset:
    put(*(record(n) for n in range(40)), *more)
    return load(curate("w", CurateSpec(min_rows=10, validation=0))["dataset_id"])


def about(record_id: str, value: Any, kind: str = "thumb") -> dict[str, Any]:
    return {**thumb(0, value, kind), "record_id": record_id}


def read(tokenizer: Any, rows: Sequence[dict[str, Any]], *keys: str) -> set[tuple[Any, ...]]:
    """What of each row is text, without the marks of the template, and the rest as it is."""

    def plain(value: Any) -> Any:
        return tokenizer.decode(value, skip_special_tokens=True).strip() if isinstance(value, list) else value

    return {tuple(plain(row[key]) for key in keys) for row in rows}


def test_a_pair_is_a_better_and_a_worse_answer_to_one_request(home: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    preference = {"chosen": "answer 4", "rejected": "worse 4"}
    dataset = frozen(
        about("r3", "better 3", "correction"), about("r4", preference, "preference"),
        again(5, "x5", "bad 5"), about("x5", -1), about("r5", 1),
        again(6, "x6", "bad 6"), about("x6", -1), about("r6", "better 6", "correction"),
        again(7, "x7", "bad 7"), about("x7", -1),
        again(8, "x8", "right 8"), about("x8", 1), again(8, "y8", "bad 8"), about("y8", 1), about("y8", -1),
        again(11, "x11", "bad 11"), about("x11", -1), about("r11", "bad 11", "correction"),
        about("r9", -1), about("r10", 1), about("r39", "better 39", "correction"),
    )  # fmt: skip
    found = read(tokenizer, pairs(dataset, tokenizer, 1024), "chosen_ids", "rejected_ids")
    assert found == {
        ("better 3", "answer 3"), ("answer 4", "worse 4"), ("answer 5", "bad 5"), ("better 6", "answer 6"),
        ("better 6", "bad 6"), ("right 8", "bad 8"), ("bad 11", "answer 11"),
    }, "nobody said that answer 7 is better than bad 7, and 39 is held out"  # fmt: skip


def test_of_several_better_answers_the_latest_that_a_person_wrote_is_chosen(home: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    dataset = frozen(
        again(5, "x5", "bad 5"), about("x5", -1), again(5, "y5", "fine 5"), about("y5", "better 5", "correction"),
        again(5, "z5", "good 5"), about("z5", 1), again(6, "x6", "bad 6"), about("x6", -1), about("r6", 1),
        {**again(6, "y6", "later 6"), "timestamp": 1_756_000_000 + 60 * 8}, about("y6", 1),
    )  # fmt: skip
    found = read(tokenizer, pairs(dataset, tokenizer, 1024), "chosen_ids", "rejected_ids")
    assert found == {("better 5", "bad 5"), ("better 5", "fine 5"), ("later 6", "bad 6")}


def test_thumbs_are_what_people_liked_and_what_they_did_not(home: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    dataset = frozen(about("r3", "better 3", "correction"), about("r4", 1), about("r5", -1), about("r39", -1))
    found = read(tokenizer, thumbs(dataset, tokenizer, 1024), "completion_ids", "label")
    assert found == {("better 3", True), ("answer 3", False), ("answer 4", True), ("answer 5", False)}


def test_pairs_and_thumbs_are_the_tokens_that_imitation_reads(home: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    dataset = frozen(about("r3", CALL, "correction"))
    (row,) = [row for row in dataset.split("train") if row["rejected"]]
    right, wrong = (encode(tokenizer, [{**row, "expected": row[key]}], 1024)[0] for key in ("expected", "rejected"))
    (pair,) = pairs(dataset, tokenizer, 1024)
    assert "look_up" in tokenizer.decode(pair["chosen_ids"])
    assert pair["prompt_ids"] + pair["chosen_ids"] == right.ids and len(pair["prompt_ids"]) == right.prompt
    assert pair["prompt_ids"] + pair["rejected_ids"] == wrong.ids
    assert [t["prompt_ids"] + t["completion_ids"] for t in thumbs(dataset, tokenizer, 1024)] == [right.ids, wrong.ids]
    assert pairs(dataset, tokenizer, len(right.ids) - 1) == []


def test_where_there_is_nothing_to_prefer_it_is_said_in_one_line(home: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(bare)
    dataset = frozen(about("r3", -1))
    with pytest.raises(SetupError, match=r"has no pair .* leave distill\.prefer out"):
        DPO().prepare(dataset, tokenizer, 1024)
    with pytest.raises(SetupError, match=r"has 0 answers that people liked and 1 that they did not"):
        KTO().prepare(dataset, tokenizer, 1024)


@pytest.mark.parametrize("spec", [DPO(), KTO()], ids=lambda spec: spec.name)
def test_without_trl_the_extra_is_named(home: Path, spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.lessons.preferences.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=rf"prefer={spec.name} needs TRL.*pip install 'flywheel\[preferences\]'"):
        spec.prepare(frozen(), None, 1024)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"ep'), (100, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
