"""What becomes of a call, over real sockets: streams of every shape, teachers that fail, clients that leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from infra.database.messages import answer_of
from infra.database.session import session
from infra.database.tables import Feedback, Interaction, Quarantine
from tests.infra.gateway.conftest import ANSWER, Teacher, chunk, eventually
from tests.infra.gateway.test_app import rows

ROOT = Path(__file__).parents[3]
MESSAGES = [{"role": "user", "content": "where is order 48213"}]
CALL = {"id": "call_0", "type": "function", "function": {"name": "track", "arguments": '{"order": "48213"}'}}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def ask(url: str, model: str = "shop", **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"model": model, "messages": MESSAGES, **more}, timeout=30)


def streamed(url: str, model: str = "shop") -> tuple[list[dict[str, Any]], str]:
    """The chunks that a client gets, and the last event as it stands."""
    answer = ask(url, model, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.strip() for event in answer.text.replace("\r\n", "\n").split("\n\n") if event.strip()]
    data = [line[5:].strip() for event in events for line in event.split("\n") if line.startswith("data:")]
    return [json.loads(said) for said in data if said != "[DONE]"], data[-1]


def only() -> Interaction:
    (row,) = rows(Interaction)
    return row


def script(teacher: type[Teacher], *pieces: bytes | dict[str, Any] | str, end: str = "close_stream") -> None:
    def play(self: Teacher) -> None:
        self.stream()
        for piece in pieces:
            self.say(piece)
        getattr(self, end)()

    teacher.scripts["shop"] = play


def test_a_stream_is_passed_on_and_recorded_as_one_answer(url: str, teacher: type[Teacher]) -> None:
    """Comments, CRLF, no space behind the colon, a line in two pieces, U+2028 in the text, usage alone at the end."""
    first = json.dumps(chunk("On its "), ensure_ascii=False).encode()
    script(
        teacher,
        b": keep-alive\n\n", b"data:" + first + b"\r\n\r\n",
        b"event: message\ndata: " + first[:40], first[40:] + b"\n\n",
        b"data: " + json.dumps(chunk("way\u2028\x85!"), ensure_ascii=False).encode() + b"\n\n", chunk(None, "stop"),
        {**chunk(), "choices": [], "usage": USAGE}, "[DONE]",
    )  # fmt: skip
    answer = ask(url, stream=True)
    assert ": keep-alive\n" in answer.text and "event: message\n" in answer.text
    chunks, last = streamed(url)
    assert last == "[DONE]"
    said = "".join(part["delta"].get("content", "") for one in chunks for part in one["choices"])
    assert said == "On its On its way\u2028\x85!"
    stored = max(rows(Interaction), key=lambda row: row.at)
    assert {one["id"] for one in chunks} == {stored.external_id} and stored.response["upstream_id"] == "chatcmpl-7"
    assert answer_of(stored.response) == {"role": "assistant", "content": said}
    assert (stored.prompt_tokens, stored.completion_tokens, stored.model) == (7, 3, "big")


def test_choices_and_tool_calls_are_told_apart(url: str, teacher: type[Teacher]) -> None:
    function = {"name": "track", "arguments": '{"order"'}
    script(
        teacher,
        chunk(role="assistant", tool_calls=[{"index": 0, "id": "call_0", "type": "function", "function": function}]),
        chunk("One moment.", index=1), chunk(None, "stop", index=1),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": ': "48213"}'}}]), chunk(None, "tool_calls"), "[DONE]",
    )  # fmt: skip
    streamed(url)
    one, two = only().response["choices"]
    assert (one["message"]["tool_calls"], one["finish_reason"]) == ([CALL], "tool_calls")
    assert (two["message"]["content"], two["finish_reason"]) == ("One moment.", "stop")


def test_a_client_that_hangs_up_leaves_half_an_answer_that_is_not_taken_for_a_whole_one(
    url: str, teacher: type[Teacher]
) -> None:
    def talk(self: Teacher) -> None:
        self.stream()
        for n in range(400):
            self.say(chunk(f"{n} "))
            time.sleep(0.02)

    teacher.scripts["talker"] = talk
    teacher.left.clear()
    body = {"model": "talker", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        heard = next(answer.iter_bytes())
        assert b'"0 "' in heard
    stored = eventually(lambda: rows(Interaction))[0]
    (choice,) = stored.response["choices"]
    assert choice["message"]["content"].startswith("0 ") and choice["finish_reason"] == "cut_off"
    assert stored.response["error"]["code"] == "client_disconnected" and answer_of(stored.response) is None
    assert eventually(lambda: teacher.left) == ["talker"], "the teacher is not kept talking"


def test_a_client_that_hangs_up_after_the_last_word_has_a_whole_answer(url: str, teacher: type[Teacher]) -> None:
    def dawdle(self: Teacher) -> None:
        self.stream()
        self.say(chunk("On its way."))
        self.say(chunk(None, "stop"))
        time.sleep(2)
        self.say("[DONE]")
        self.close_stream()

    teacher.scripts["shop"] = dawdle
    body = {"model": "shop", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"stop"' in line:
                break
    stored = eventually(lambda: rows(Interaction))[0]
    assert answer_of(stored.response) == ANSWER and "error" not in stored.response


def test_a_client_that_leaves_before_the_answer_has_it_recorded(url: str, teacher: type[Teacher]) -> None:
    def think(self: Teacher) -> None:
        time.sleep(1)
        self.whole()

    teacher.scripts["shop"] = think
    body = {"model": "shop", "messages": MESSAGES}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
    assert not rows(Interaction)
    assert answer_of(eventually(lambda: rows(Interaction))[0].response) == ANSWER


def test_a_client_that_leaves_before_the_first_word_of_a_stream_is_recorded(url: str, teacher: type[Teacher]) -> None:
    def think(self: Teacher) -> None:
        time.sleep(1)
        self.stream()
        self.say(chunk("On"))
        time.sleep(5)

    teacher.scripts["shop"] = think
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{url}/v1/chat/completions", json={"model": "shop", "messages": MESSAGES, "stream": True}, timeout=0.3
        )
    response = eventually(lambda: rows(Interaction))[0].response
    assert response["error"]["code"] == "client_disconnected" and answer_of(response) is None


@pytest.mark.parametrize("end", ["break_off", "close_stream"])
def test_a_teacher_that_breaks_off_ends_in_an_error_for_client_and_record(
    url: str, teacher: type[Teacher], end: str
) -> None:
    script(teacher, chunk("On its "), b'data: {"id": "chatcm', end=end)
    chunks, last = streamed(url)
    assert json.loads(last)["error"]["code"] == "teacher_broke_off"
    assert chunks[0]["choices"][0]["delta"]["content"] == "On its "
    stored = only().response
    assert (stored["choices"][0]["message"]["content"], stored["choices"][0]["finish_reason"]) == ("On its ", "cut_off")
    assert stored["error"]["code"] == "teacher_broke_off" and answer_of(stored) is None


def test_an_error_within_a_stream_is_passed_on_once_and_recorded(url: str, teacher: type[Teacher]) -> None:
    told = {"error": {"message": "overloaded", "type": "server_error", "param": None, "code": "busy"}}
    script(teacher, chunk("On"), told)
    chunks, last = streamed(url)
    assert json.loads(last) == told and len([one for one in chunks if "error" in one]) == 1
    assert only().response["error"] == told["error"] and answer_of(only().response) is None


def test_an_error_in_place_of_a_stream_is_recorded(url: str, teacher: type[Teacher]) -> None:
    told = {"error": {"message": "overloaded", "code": "busy"}}
    script(teacher, told, "[DONE]")
    streamed(url)
    assert only().response["error"] == told["error"]


def test_a_teacher_that_does_not_stream_is_streamed_for(url: str, teacher: type[Teacher]) -> None:
    choices = [
        {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [CALL]}, "finish_reason": "stop"},
        {"index": 1, "message": ANSWER, "finish_reason": "stop"},
    ]
    teacher.scripts["shop"] = lambda self: self.reply(200, {"id": "7", "choices": choices, "usage": USAGE})
    chunks, last = streamed(url)
    assert last == "[DONE]" and chunks[-1]["usage"] == USAGE and len(only().response["choices"]) == 2
    assert [part["index"] for one in chunks for part in one["choices"] if part["finish_reason"]] == [0, 1]
    assert {one["id"] for one in chunks} == {only().external_id}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        ((500, {"error": {"message": "down", "type": "server_error", "code": "x"}}), 500, "down"),
        ((429, {"error": {"message": "slow", "type": "requests"}}), 429, "slow"),
        ((404, b"<html>no such page"), 404, "no such page"),
        ((200, b"[1, 2]"), 502, "a list"),
        ((200, {"choices": []}), 502, "200"),
        ((200, {"error": "no model"}), 502, "no model"),
        ((302, b""), 502, "302"),
    ],
)
def test_a_teachers_error_is_passed_on_and_recorded(
    url: str, teacher: type[Teacher], reply: tuple[int, Any], status: int, message: str, stream: bool
) -> None:
    teacher.scripts["shop"] = lambda self: self.reply(*reply, retry_after="7")
    answer = ask(url, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert message in error["message"]
    assert reply[0] != 429 or answer.headers["retry-after"] == "7"
    assert (only().response, only().external_id) == ({"error": error}, answer.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_teacher_that_closes_the_line_is_a_502_and_recorded(url: str, teacher: type[Teacher], stream: bool) -> None:
    teacher.scripts["shop"] = Teacher.break_off
    answer = ask(url, stream=stream)
    assert answer.status_code == 502 and only().response == answer.json()


def test_chunks_that_cannot_be_understood_are_kept_in_quarantine(url: str, teacher: type[Teacher]) -> None:
    script(teacher, chunk(tool_calls=[{"index": 5, "function": {"name": "x"}}]), chunk(None, "stop"), "[DONE]")
    _, last = streamed(url)
    assert last == "[DONE]" and rows(Interaction) == []
    (kept,) = rows(Quarantine)
    assert json.loads(kept.raw)["request"]["messages"] == MESSAGES and kept.source == "gateway"


def test_feedback_finds_its_call_though_the_teacher_gives_all_its_answers_one_id(
    url: str, teacher: type[Teacher]
) -> None:
    teacher.scripts.pop("shop", None)
    first, second = (ask(url).json()["id"] for _ in range(2))
    for about, value in ((first, 1), (second, -1)):
        given = {"record_id": about, "kind": "thumb", "value": value}
        assert httpx.post(f"{url}/v1/feedback", json=given).status_code == 200
    with session(write=False) as db:
        joined = select(Interaction.external_id, Feedback.value).join(
            Feedback, Feedback.record_id == Interaction.external_id
        )
        assert sorted(db.execute(joined)) == sorted([(first, 1), (second, -1)])


def test_a_champion_that_breaks_is_recorded_beside_the_teachers_answer(
    open_house: Any, teacher: type[Teacher], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    from infra import registry
    from tests.infra.gateway.test_app import ASK, promote

    teacher.scripts.pop("shop", None)
    own = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with open_house(MLFLOW=own) as url:
        promote(artifact())
        eventually(lambda: httpx.get(f"{url}/v1/models").json()["data"])
        broken = {**ASK, "max_tokens": "many"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=broken, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"] == ANSWER
        answered, tried = sorted(rows(Interaction), key=lambda row: row.external_id)
        assert registry.is_student(tried.model) and tried.response["error"]["code"] == "engine_failed"
        assert answer_of(tried.response) is None and answer_of(answered.response) == ANSWER
        assert tried.conversation != answered.conversation


SERVER = (
    "import sys\nfrom infra.gateway.app import create_app\nfrom infra.gateway.server import serve\n"
    "serve(create_app(sys.argv[1]), '127.0.0.1', int(sys.argv[2]))"
)


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_that_is_stopped_records_what_it_was_in_the_middle_of(
    home: Path, registry_uri: str, teacher: type[Teacher], stream: bool
) -> None:
    from tests.mlflow_server import free_port

    def talk(self: Teacher) -> None:
        if not stream:
            time.sleep(60)
        self.stream()
        while True:
            self.say(chunk("and "))
            time.sleep(0.05)

    teacher.scripts["shop"] = talk
    port = free_port()
    environment = {**os.environ, "FLYWHEEL_MLFLOW": registry_uri, "FLYWHEEL_DRAIN_SECONDS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SERVER, teacher.url, str(port)], cwd=ROOT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/healthz"), 60)
        asked = len(teacher.asked)
        body = {"model": "shop", "messages": MESSAGES, "stream": stream}
        with httpx.Client(timeout=30) as client:
            request = client.build_request("POST", f"{url}/v1/chat/completions", json=body)
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_bytes())
                process.send_signal(signal.SIGTERM)
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{url}/v1/chat/completions", json=body, timeout=1)
                eventually(lambda: len(teacher.asked) > asked)
                process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            if stream:
                answer.close()
    finally:
        process.kill()
        process.wait()
    response = only().response
    assert response["error"]["code"] == "client_disconnected" and answer_of(response) is None
    assert not stream or response["choices"][0]["message"]["content"].startswith("and ")


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
