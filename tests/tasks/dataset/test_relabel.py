"""What the teacher is asked, whatever a person of its endpoint pays for it, and what becomes of it in the dataset."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from prefect.states import Failed
from sqlalchemy import select

import tasks.teachers.pace
from flows.stage import _may_help
from infra.database.messages import answer_of
from infra.database.session import session
from infra.database.tables import Interaction
from infra.engines.chat import load_tokenizer
from infra.settings import SEEDLING, SetupError
from tasks.curate import CurateSpec, curate, load
from tasks.evaluate import EvaluateSpec, evaluate_teacher
from tasks.ingest import ingest
from tasks.teachers.logprobs import top_k_of
from tasks.teachers.pace import TRIES
from tasks.teachers.tally import BudgetSpent
from tasks.training.examples import encode
from tests.conftest import living_in
from tests.tasks.teachers.server import refusal, said, serving
from tests.tasks.test_curate import SPEC, accounted, by_student, put, question, record, rows, thumb
from tests.tasks.test_forget import log

UNLABELLED = CurateSpec(min_rows=10, relabel="unlabelled")


def failed(n: int) -> dict[str, Any]:
    """A call whose log holds no answer to imitate, in one of four ways."""
    ways: list[Any] = [
        {"error": {"message": "overloaded"}},
        {"model": "m", "choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]},
        {"model": "m", "choices": [{"message": {"content": " "}, "finish_reason": "stop"}]},
        {"error": {"type": "unlabelled", "message": "the log has no response"}},
    ]
    return record(n, response=ways[n % 4])


def test_unlabelled_traffic_is_asked_only_by_who_wants_it(tmp_path: Path) -> None:
    with serving(lambda q, _: said(f"says {q}")) as endpoint, living_in(tmp_path / "home", TEACHER=endpoint.url):
        put(*(record(n) for n in range(30)), *(failed(n) for n in range(30, 38)), by_student(38))
        put(thumb(33, "right", "correction"), thumb(31, -1))
        plain = curate("w", SPEC)
        assert plain["left_out"] == {"no usable answer": 7} and plain["teacher_use"]["asked"] == 1
        made = curate("w", UNLABELLED)
        assert made["origins"] == {**made["origins"], "correction": 1, "relabelled": 8} and accounted(made)
        assert made["left_out"].keys() == {"held out in an earlier dataset"}
        assert made["teacher_use"] == {**made["teacher_use"], "asked": 7, "recalled": 1, "prompt_tokens": 70}
        found = rows(made)
        assert found["r34"]["expected"]["content"] == f"says {question(34)}" and found["r34"]["logged"] is None
        assert found["r31"]["weight"] == 1.0 and found["r33"]["expected"]["content"] == "right"
        assert len(endpoint.asked) == 8 and curate("w", UNLABELLED) == made and len(endpoint.asked) == 8


def test_without_a_teacher_that_can_be_asked_unlabelled_traffic_is_left_out(home: Path) -> None:
    put(*(record(n) for n in range(30)), *(failed(n) for n in range(30, 34)))
    assert curate("w", UNLABELLED)["left_out"] == {"no usable answer": 4}


def test_all_of_it_is_asked_but_what_was_corrected(tmp_path: Path) -> None:
    with serving(lambda q, _: said("same")) as endpoint, living_in(tmp_path / "home", TEACHER=endpoint.url):
        put(*(record(n) for n in range(20)), thumb(3, "right", "correction"), thumb(4, -1), thumb(5))
        made = curate("w", CurateSpec(min_rows=10, relabel="all"))
        assert made["origins"] == {"correction": 1, "relabelled": 19} and len(endpoint.asked) == 19
        found = rows(made)
        assert found["r4"]["rejected"]["content"] == "answer 4" and found["r5"]["weight"] == 1.0


def test_what_the_teacher_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    refused = {question(31): refusal(400, "no", "content_filter"), question(32): said("half", finish_reason="length")}
    with (
        serving(lambda q, _: refused.get(q, said("yes"))) as endpoint,
        living_in(tmp_path / "home", TEACHER=endpoint.url),
    ):
        put(*(record(n) for n in range(30)), *(by_student(n) for n in range(30, 35)))
        made = curate("w", SPEC)
        reasons = {"the teacher refused: content_filter": 1, "the teacher gave no usable answer": 1}
        assert made["left_out"] == reasons and accounted(made) and made["origins"]["relabelled"] == 3


def test_a_budget_stops_curation_and_the_next_run_goes_on(tmp_path: Path) -> None:
    prices = {"TEACHER_PROMPT_PRICE": "20000", "TEACHER_COMPLETION_PRICE": "40000", "TEACHER_BUDGET": "2"}
    with serving(lambda *_: said("yes")) as endpoint, living_in(tmp_path / "home", TEACHER=endpoint.url, **prices):
        put(*(record(n) for n in range(30)), *(by_student(n) for n in range(30, 38)))
        with pytest.raises(BudgetSpent) as problem:
            curate("w", SPEC)
        assert len(endpoint.asked) == 5 and not list((tmp_path / "home" / "datasets").iterdir())
        assert not _may_help(None, None, Failed(data=problem.value)), "Prefect does not try it again"
        assert _may_help(None, None, Failed(data=SetupError("elsewhere")))
        made = curate("w", SPEC)
        assert made["teacher_use"]["cost_usd"] == 1.2 and len(endpoint.asked) == 8


def test_scoring_the_holdout_asks_what_is_not_known_and_fails_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.teachers.pace, "FIRST_PAUSE", 0.0)
    bad = question(29)
    with serving(lambda *_: said("yes")) as endpoint, living_in(tmp_path / "home", TEACHER=endpoint.url):
        put(*(record(n) for n in range(30)), *(by_student(n) for n in range(30, 35)))
        made = curate("w", SPEC)
        assert (made["holdout"], len(endpoint.asked)) == (9, 5)
        endpoint.reply = lambda q, _: refusal(500) if q == bad else said("yes")
        with pytest.raises(SetupError, match=r"failed at 1 of 9 items of the holdout .*not scored"):
            evaluate_teacher(made["dataset_id"], EvaluateSpec())
        assert len(endpoint.asked) == 5 + 3 + TRIES
        endpoint.reply = lambda q, _: refusal(400, "too long", "context_length_exceeded")
        card = evaluate_teacher(made["dataset_id"], EvaluateSpec())
        assert (card["n"], card["asked"], len(endpoint.asked)) == (9, "anew", 5 + 3 + TRIES + 1)
        assert card["unanswered"] == {"the teacher refused: context_length_exceeded": 1}
        assert card["teacher_use"]["recalled"] == 8
        assert card["quality"] == pytest.approx(5 / 9), "the five that it had answered for the dataset"


def spelled(tokenizer: Any, text: str) -> dict[str, Any]:
    """A response that says a text, with log-probabilities token by token."""
    pieces = [tokenizer.decode([number]) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]
    content = [
        {"token": piece, "logprob": -0.25, "top_logprobs": [{"token": piece, "logprob": -0.25}]} for piece in pieces
    ]
    choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
    return {"model": "teacher", "choices": [choice]}


def test_a_dataset_has_the_log_probabilities_of_exactly_the_answer_that_is_imitated(
    tmp_path: Path, tokenizer: Any
) -> None:
    texts = {n: f"answer number {n}" for n in range(40)} | {7: "write to bob@example.com"}
    lines = [record(n, response=spelled(tokenizer, texts[n])) for n in range(36)]
    lines[5] = {**lines[5], "response": spelled(tokenizer, "answer") | record(5)["response"]}
    mine = {**spelled(tokenizer, "student"), "model": "flywheel:w/1"}
    lines += [record(n, response=mine) for n in range(36, 40)]
    lines += [thumb(3, "better", "correction"), thumb(4, "answer number 4", "correction")]
    says = spelled(tokenizer, "the teacher says")["choices"][0]["logprobs"]
    with (
        serving(lambda *_: said("the teacher says", logprobs=says)) as endpoint,
        living_in(tmp_path / "home", TEACHER=endpoint.url, TEACHER_LOGPROBS="1"),
    ):
        ingest(log(tmp_path / "a.jsonl", *lines))
        made = curate("w", SPEC)
        dataset = load(made["dataset_id"])
        known: dict[str, Any] = {}
        for split in ("train", "validation", "holdout"):
            of_rows = zip(dataset.split(split), dataset.logprobs(split), strict=True)
            known |= {row["record"].removeprefix("jsonl:r"): (row, logprobs) for row, logprobs in of_rows}
        without = {n for n, (_, logprobs) in known.items() if logprobs is None}
        assert without == {"3", "5", "7"}, "corrected; logged without; spelling out what was redacted"
        assert made["logprobs"] == len(known) - 3 == 37
        for row, logprobs in known.values():
            if logprobs is not None:
                assert "".join(token for token, _, _ in logprobs) == row["expected"]["content"]
                [example] = encode(tokenizer, [row], 1024)
                found = top_k_of(logprobs, tokenizer, example.ids, example.prompt)
                assert not isinstance(found, str) and (found[0][:-1, 0] == -0.25).all()
        with session(write=False) as db:
            [redacted] = db.scalars(select(Interaction.response).where(Interaction.external_id == "r7"))
            [plain] = db.scalars(select(Interaction.response).where(Interaction.external_id == "r8"))
        assert "logprobs" not in redacted["choices"][0] and plain["choices"][0]["logprobs"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SEEDLING / "student")


def test_a_line_whose_response_is_null_is_unlabelled_traffic(database: str, tmp_path: Path) -> None:
    bare = {key: value for key, value in record(2).items() if key != "response"}
    golden = {**record(3, response=None), "expected": {"content": "x"}}
    done = ingest(log(tmp_path / "a.jsonl", record(0), record(1, response=None), bare, golden))
    assert (done["interactions"], done["quarantined"]) == (2, 2)
    with session(write=False) as db:
        found = {row.external_id: row.response for row in db.query(Interaction)}
    assert found.keys() == {"r0", "r1"} and answer_of(found["r1"]) is None


def test_a_students_answer_that_people_vouch_for_brings_no_log_probabilities(home: Path, tokenizer: Any) -> None:
    mine = [{**spelled(tokenizer, f"student {n}"), "model": "flywheel:w/1"} for n in range(5)]
    put(*(record(n, response=mine[n]) for n in range(5)), *(thumb(n) for n in range(5)))
    put(*(record(n, response=spelled(tokenizer, f"teacher {n}")) for n in range(5, 30)))
    made = curate("w", SPEC)
    assert made["origins"] == {"logged": 30} and made["logprobs"] == 25


def test_a_dataset_that_was_frozen_before_there_were_any_has_none(home: Path) -> None:
    put(*(record(n) for n in range(30)))
    dataset = load(curate("w", SPEC)["dataset_id"])
    file = Path(dataset.path) / "train.parquet"
    parquet.write_table(parquet.read_table(file).drop_columns("logprobs"), file)
    assert list(dataset.logprobs("train")) == [None] * len(dataset.split("train"))
