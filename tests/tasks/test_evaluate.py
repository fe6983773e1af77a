"""Evaluation with a real dataset, database, registry and llama.cpp; the model is a tiny Llama that nobody trained."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest

from infra import registry
from infra.database.session import session
from infra.database.tables import Candidate, Interaction, Scorecard, Student
from infra.engines import load
from infra.prefix import Prefix
from infra.settings import SetupError
from tasks.dataset.frozen import freeze
from tasks.evaluate import (
    EvaluateSpec,
    candidates_of,
    evaluate_candidate,
    evaluate_champion,
    evaluate_teacher,
)
from tasks.metrics import JSONSchema, Perplexity, ToolCall
from tasks.metrics.cost import Prices
from tasks.scoring.scorecards import read_answers, read_items
from tasks.teachers import LocalTeacher
from tests.conftest import living_in
from tests.models import PREFIX

SPEC = EvaluateSpec(latency_sample=3)
QUESTIONS = [f"where is order {number} please" for number in range(100, 112)]
Make = Callable[..., Path]


def frozen(expected: list[dict[str, Any]], prefix: Prefix | None = PREFIX, latency: float | None = 100.0) -> str:
    """A dataset whose holdout asks QUESTIONS; every third answer was corrected to "corrected"."""
    rows = []
    with session() as db:
        for i, (question, answer) in enumerate(zip(QUESTIONS, expected, strict=True)):
            messages, tools = PREFIX.restore([{"role": "user", "content": question}])
            request = {"model": "gpt-x", "messages": messages, "tools": tools, "stream": True, "stream_options": {}}
            made = Interaction(
                source="test", external_id=uuid4().hex, workload="shop", conversation=f"c{i}", at=datetime.now(UTC),
                request=request, response={"choices": [{"message": answer}]} if answer else {},
            )  # fmt: skip
            db.add(made)
            db.flush()
            corrected = {"role": "assistant", "content": "corrected"} if i % 3 == 0 else None
            rows.append(
                {
                    "interaction_id": made.id, "record": f"{i}", "conversation": f"c{i}", "at": made.at.isoformat(),
                    "messages": messages[1:] if prefix else messages, "tools": None if prefix else tools,
                    "expected": corrected or answer, "logged": answer, "rejected": None, "weight": 1.0,
                    "origin": "correction" if corrected else "logged", "latency_ms": latency and latency + i,
                    "prompt_tokens": None, "completion_tokens": None, "logprobs": None,
                }
            )  # fmt: skip
    result = freeze("shop", [("holdout", row) for row in rows], prefix, {}, dict, None)
    return str(result["dataset_id"])


def candidate(dataset_id: str, folder: Path, name: str = "int8") -> str:
    with session() as db:
        db.merge(Student(id="s", dataset_id=dataset_id, path="", report={}, spec={}))
        db.flush()
        db.add(
            Candidate(
                id=name, student_id="s", name=name, format="gguf", path=str(folder), size=1, spec={},
                artifact_hash=registry.artifact_hash(folder),
            )
        )  # fmt: skip
    return name


@pytest.fixture(scope="module")
def made(artifact: Make) -> Path:
    return artifact()


@pytest.fixture(scope="module")
def said(made: Path) -> list[dict[str, Any]]:
    """What the artifact answers to QUESTIONS: asked here one by one, without `tasks.evaluate`."""
    engine = load(made)
    asked = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    answers = [engine.chat([request])[0].message for request in asked]
    engine.close()
    return answers


def logged(text: str = "yes") -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}] * len(QUESTIONS)


def test_a_candidate_is_scored_by_what_its_engine_answers(home: Path, made: Path, said: list[dict[str, Any]]) -> None:
    """Its own answers are what is expected, but for each third, which a person corrected."""
    dataset_id = frozen(said)
    told: list[tuple[int, int, str]] = []
    card = evaluate_candidate(
        dataset_id, candidate(dataset_id, made), SPEC, progress=lambda *step: told.append(step), flow_run_id="run-1"
    )
    assert (card["name"], card["subject"], card["asked"]) == ("int8", "candidate:int8", "anew")
    assert (card["n"], card["quality"]) == (12, pytest.approx(8 / 12))
    assert card["bytes"] == (made / "model.gguf").stat().st_size
    assert card["tokens_per_second"] > 0 and card["seconds_per_request"] > 0
    assert 0 < card["latency_p50_ms"] <= card["latency_p95_ms"]
    assert told[-1] == (12, 12, "score int8")
    with session(write=False) as db:
        row = db.get_one(Scorecard, card["scorecard_id"])
    assert row.artifact_hash == registry.artifact_hash(made) and row.flow_run_id == "run-1"
    assert row.spec["metric"] == {"name": "quality"} and row.spec["latency_sample"] == 3
    assert [item.value for item in read_items(Path(row.path))] == [i % 3 != 0 for i in range(12)]
    json.dumps(card)


def test_what_an_engine_takes_is_measured_or_absent(home: Path, made: Path) -> None:
    dataset_id = frozen(logged())
    spec = EvaluateSpec(latency_sample=3, prices=Prices(machine_hour=3.6, prompt=1.0, completion=1.0))
    card = evaluate_candidate(dataset_id, candidate(dataset_id, made), spec)
    assert 0 < card["first_token_p50_ms"] <= card["latency_p50_ms"] and card["token_p50_ms"] > 0
    assert card["usd_per_1000"] == pytest.approx(card["seconds_per_request"])
    assert (card["memory_bytes"] > 0 and card["joules_per_request"] is None) or card["joules_per_request"] > 0
    assert card["yardsticks"] == {"correction": 4, "teacher's answer": 8}
    assert card["json_schema"] is not None, "the requests have a tool"
    assert "perplexity" not in card and card["calibration"] is None, "nobody asked, and llama.cpp does not say"
    teacher = evaluate_teacher(dataset_id, spec)
    assert teacher["usd_per_1000"] is None and teacher["memory_bytes"] is None, "the log has no tokens"
    json.dumps(card, allow_nan=False)


def test_perplexity_is_what_the_engine_says_where_it_can(home: Path, made: Path, bare: Path) -> None:
    dataset_id = frozen(logged())
    spec = EvaluateSpec(latency_sample=1, metric=Perplexity())
    told = evaluate_candidate(dataset_id, candidate(dataset_id, bare, "torch"), spec)
    assert 0 < told["low"] < told["quality"] < told["high"] < 1 and told["n"] == 12
    absent = evaluate_candidate(dataset_id, candidate(dataset_id, made, "llama.cpp"), spec)
    assert (absent["quality"], absent["n"]) == (None, 0)


def test_a_request_s_own_schema_is_what_its_answer_is_held_against(home: Path) -> None:
    dataset_id = frozen(logged('{"n": 1}'))
    with session() as db:
        for one in db.query(Interaction):
            schema = {"type": "object", "required": ["n" if one.conversation in ("c1", "c2") else "m"]}
            one.request = {**one.request, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    card = evaluate_teacher(dataset_id, EvaluateSpec(metric=JSONSchema()))
    assert card["quality"] == pytest.approx(2 / 12)


def test_a_scorecard_is_made_once_and_becomes_the_newest_when_asked_for_again(home: Path, made: Path) -> None:
    dataset_id = frozen(logged())
    name = candidate(dataset_id, made)
    first = evaluate_candidate(dataset_id, name, SPEC)
    other = evaluate_candidate(dataset_id, name, EvaluateSpec(metric=ToolCall(), latency_sample=3))
    assert other["scorecard_id"] != first["scorecard_id"]
    assert evaluate_candidate(dataset_id, name, SPEC) == first, "measured again, the speeds would differ"
    with session(write=False) as db:
        cards = [db.get_one(Scorecard, card["scorecard_id"]) for card in (first, other)]
    assert cards[0].created > cards[1].created
    Path(cards[0].path).unlink()
    again = evaluate_candidate(dataset_id, name, SPEC)
    assert again["scorecard_id"] == first["scorecard_id"] and Path(cards[0].path).exists()


def test_files_that_changed_since_they_were_made_are_not_scored(home: Path, made: Path, tmp_path: Path) -> None:
    dataset_id = frozen(logged())
    folder = tmp_path / "artifact"
    shutil.copytree(made, folder)
    name = candidate(dataset_id, folder)
    with (folder / "model.gguf").open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(SetupError, match=r"has files with hash .*, made was .* quantize again"):
        evaluate_candidate(dataset_id, name, SPEC)
    with pytest.raises(SetupError, match="candidate 'nothing' is unknown"):
        evaluate_candidate(dataset_id, "nothing", SPEC)


def test_a_logged_answer_that_cannot_be_read_is_a_wrong_one(home: Path) -> None:
    unreadable: list[Any] = [None if i % 3 == 0 else answer for i, answer in enumerate(logged())]  # corrected each
    card = evaluate_teacher(frozen(unreadable), SPEC)
    assert card["quality"] == pytest.approx(8 / 12)


def test_without_a_teacher_its_logged_answers_are_scored(home: Path) -> None:
    card = evaluate_teacher(frozen(logged()), SPEC)
    assert (card["name"], card["subject"], card["asked"]) == ("teacher (as logged)", "teacher", "as logged")
    assert card["quality"] == pytest.approx(8 / 12), "it is wrong where it was corrected, and nowhere else"
    assert (card["latency_p50_ms"], card["latency_p95_ms"]) == (105.0, 111.0)
    assert card["seconds_per_request"] is None and card["bytes"] is None


def test_a_local_teacher_is_asked_the_whole_request_on_this_machine(tmp_path: Path, bare: Path) -> None:
    with living_in(tmp_path / "home", TEACHER=str(bare)):
        card = evaluate_teacher(frozen(logged()), SPEC)
        assert (card["name"], card["asked"], card["n"]) == (f"teacher ({bare.name})", "anew", 12)
        assert card["seconds_per_request"] > 0 and card["bytes"] > 0
        with session(write=False) as db:
            assert db.get_one(Scorecard, card["scorecard_id"]).artifact_hash
        engine = load(LocalTeacher(str(bare)).artifact())
        whole = [PREFIX.restore([{"role": "user", "content": question}]) for question in QUESTIONS]
        replies = engine.chat([{"messages": m, "tools": t, "max_tokens": 1} for m, t in whole])
        engine.close()
    assert card["prompt_tokens"] == sum(reply.prompt_tokens for reply in replies), "prompt and tools are asked too"


@contextmanager
def endpoint(answer: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible endpoint on this machine that always says the same, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_endpoint_is_asked_what_the_application_asked(tmp_path: Path) -> None:
    with endpoint("corrected") as (url, asked), living_in(tmp_path / "home", TEACHER=url):
        card = evaluate_teacher(frozen(logged()), SPEC)
    assert card["quality"] == pytest.approx(4 / 12)
    assert (card["asked"], card["seconds_per_request"], card["latency_p50_ms"]) == ("anew", None, 105.0)
    assert len(asked) == 12
    for body in asked:
        assert body["model"] == "gpt-x" and body["messages"][0]["role"] == "system" and len(body["tools"]) == 1
        assert body["stream"] is False and "stream_options" not in body


def test_the_champion_is_scored_as_it_serves(home: Path, made: Path, said: list[dict[str, Any]]) -> None:
    dataset_id = frozen(said)
    assert evaluate_champion(dataset_id, SPEC) == {}
    version, _ = registry.register("shop", made, metrics={}, tags={"name": "int8"}, parameters={}, run_name="x")
    registry.promote("shop", version)
    card = evaluate_champion(dataset_id, SPEC)
    assert (card["subject"], card["name"]) == (f"champion:{version}", f"champion {version} (int8)")
    assert card["quality"] == pytest.approx(8 / 12)


def test_an_artifact_with_another_prefix_is_asked_in_full(home: Path, artifact: Make, made: Path) -> None:
    dataset_id = frozen(logged())
    other = artifact(prefix=Prefix("Another job.", ()).to_json())
    counts = [
        evaluate_candidate(dataset_id, candidate(dataset_id, folder, name), SPEC)["prompt_tokens"]
        for folder, name in ((made, "baked"), (other, "other"))
    ]
    assert counts[1] > 2 * counts[0]


def test_candidates_are_those_of_every_student_of_the_dataset_newest_first(home: Path, made: Path) -> None:
    dataset_id = frozen(logged())
    other = frozen(logged("other"))
    for name in ("first", "second"):
        candidate(dataset_id, made, name)
    with session() as db:
        db.add(Student(id="s2", dataset_id=other, path="", report={}, spec={}))
        db.flush()
        db.add(
            Candidate(
                id="x", student_id="s2", name="x", format="gguf", path=str(made), size=1, spec={}, artifact_hash="0"
            )
        )
    assert candidates_of(dataset_id) == ["second", "first"]
    assert candidates_of("nothing") == []


def test_where_a_classifier_abstains_the_teacher_is_measured(home: Path, labelled: Make) -> None:
    """It says "shipping" to each question, but for those of which it is not sure enough at a threshold of 1."""
    dataset_id = frozen(logged("shipping"))
    sure, never = labelled(threshold=0.4), labelled(threshold=1.0)
    alone = evaluate_candidate(dataset_id, candidate(dataset_id, sure, "sure"), SPEC)
    assert (alone["abstained"], alone["quality"]) == (0.0, pytest.approx(8 / 12))
    assert alone["latency_p95_ms"] < 100, "nobody waits for the teacher"
    assert alone["bytes"] == (sure / "model.onnx").stat().st_size
    with session(write=False) as db:
        assert db.query(Scorecard).filter_by(subject="teacher").count() == 0, "which was not needed"

    other = frozen(logged("other"))
    left = evaluate_candidate(other, candidate(other, never, "never"), SPEC)
    teacher = evaluate_teacher(other, SPEC)
    assert (left["abstained"], left["quality"]) == (1.0, teacher["quality"]) == (1.0, pytest.approx(8 / 12))
    assert left["latency_p50_ms"] > teacher["latency_p50_ms"] == 105.0
    with session(write=False) as db:
        card = db.get_one(Scorecard, left["scorecard_id"])
    answers = read_answers(Path(card.path))
    assert [a["content"] for a in answers] == ["other"] * 12


def test_a_latency_that_depends_on_an_unknown_one_is_unknown(home: Path, labelled: Make) -> None:
    dataset_id = frozen(logged(), latency=None)
    card = evaluate_candidate(dataset_id, candidate(dataset_id, labelled(threshold=1.0)), SPEC)
    assert (card["abstained"], card["latency_p50_ms"], card["latency_p95_ms"]) == (1.0, None, None)
    json.dumps(card, allow_nan=False)
