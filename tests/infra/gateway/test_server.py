"""The gateway as a process under load: killed, told to stop, told twice; what it answered is never missing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.database.messages import answer_of
from infra.database.tables import Feedback, Interaction
from infra.gateway import spool
from tests.infra.gateway.conftest import Teacher, chunk, eventually
from tests.infra.gateway.test_app import rows
from tests.infra.gateway.test_calls import MESSAGES, ROOT, SERVER, answers
from tests.mlflow_server import free_port

ASK = {"model": "shop", "messages": MESSAGES}


@pytest.fixture
def start(home: Path, registry_uri: str, teacher: type[Teacher], tmp_path: Path) -> Any:
    """`with start() as (process, url)`: a gateway of its own on this home; it logs to `tmp_path / "log"`."""
    teacher.scripts.pop("shop", None)

    @contextmanager
    def started() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        port, environment = free_port(), {**os.environ, "FLYWHEEL_MLFLOW": registry_uri}
        with (tmp_path / "log").open("ab") as log:
            command = [sys.executable, "-c", SERVER, teacher.url, str(port)]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: process.poll() is not None or answers(f"{url}/readyz"), 120)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield process, url
        finally:
            process.kill()
            process.wait()

    return started


def taken_up(open_house: Any) -> None:
    """A gateway that begins on this home and ends."""
    with open_house():
        eventually(lambda: not list(spool.folder().glob("*.jsonl")))


def test_a_gateway_that_is_killed_under_load_misses_nothing_that_it_answered(start: Any, open_house: Any) -> None:
    answered: list[str] = []
    praised: list[str] = []

    def customer(url: str) -> None:
        with httpx.Client(timeout=30) as client, suppress(httpx.HTTPError):
            while True:
                answered.append(client.post(f"{url}/v1/chat/completions", json=ASK).json()["id"])
                given = {"record_id": answered[-1], "kind": "thumb", "value": 1}
                praised.append(client.post(f"{url}/v1/feedback", json=given).json()["id"])

    with start() as (process, url):
        customers = [threading.Thread(target=customer, args=(url,)) for _ in range(6)]
        for each in customers:
            each.start()
        eventually(lambda: len(praised) > 100, 120)
        process.send_signal(signal.SIGKILL)
        for each in customers:
            each.join()
    taken_up(open_house)
    assert set(answered) <= {row.external_id for row in rows(Interaction)}
    assert set(praised) <= {row.external_id for row in rows(Feedback)}


def test_a_gateway_that_is_told_to_stop_ends_its_streams_and_begins_none(
    start: Any, teacher: type[Teacher], tmp_path: Path
) -> None:
    go_on = threading.Event()

    def talk(self: Teacher) -> None:
        self.stream()
        self.say(chunk("On its "))
        go_on.wait(60)
        for piece in (chunk("way."), chunk(None, "stop"), "[DONE]"):
            self.say(piece)
        self.close_stream()

    teacher.scripts["shop"] = talk
    said: list[tuple[str, str]] = []

    def listen(url: str, begun: threading.Barrier) -> None:
        headers = {"x-request-id": "theirs-7"}
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}, headers=headers, timeout=90
        ) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            begun.wait(60)
            said.append((answer.headers["x-request-id"], text + "".join(pieces)))

    with start() as (process, url):
        begun = threading.Barrier(4)
        listeners = [threading.Thread(target=listen, args=(url, begun)) for _ in range(3)]
        for each in listeners:
            each.start()
        begun.wait(60)
        process.send_signal(signal.SIGTERM)
        ready = eventually(lambda: (r := httpx.get(f"{url}/readyz")).status_code == 503 and r)
        assert ready.json() == {"status": "it is stopping"} and answers(f"{url}/healthz")
        refused = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=30)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        go_on.set()
        for each in listeners:
            each.join()
        assert process.wait(60) == 0
    assert all(text.endswith("data: [DONE]\n\n") and "way." in text for _, text in said)
    stored = {row.external_id: answer_of(row.response) for row in rows(Interaction)}
    assert stored == {id: {"role": "assistant", "content": "On its way."} for id, _ in said} and len(stored) == 3
    assert list(spool.folder().iterdir()) == [], "all is in the database, and nothing is left"
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"ts", "level", "logger", "message"} <= set(line) for line in logged)
    lines = {line["request_id"]: line for line in logged if "request_id" in line}
    for id, _ in said:
        told = lines[id]
        assert (told["workload"], told["served_by"], told["status"], told["outcome"]) == ("shop", "teacher", 200, "ok")
        assert told["stream"] is True and told["ms"] > 0 and told["client_request_id"] == "theirs-7"
    assert "48213" not in (tmp_path / "log").read_text(), "the log holds nothing of what was said"


def test_a_second_signal_ends_it_at_once_and_the_next_one_has_the_record(
    start: Any, open_house: Any, teacher: type[Teacher]
) -> None:
    def talk(self: Teacher) -> None:
        self.stream()
        while True:
            self.say(chunk("and "))
            threading.Event().wait(0.05)

    teacher.scripts["shop"] = talk
    with start() as (process, url):
        body = {**ASK, "stream": True}
        with (
            httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer,
            suppress(httpx.HTTPError),
        ):
            pieces = answer.iter_bytes()
            next(pieces)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: not answers(f"{url}/readyz"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
    taken_up(open_house)
    (stored,) = rows(Interaction)
    assert stored.response["choices"][0]["message"]["content"].startswith("and ")
    assert stored.response["error"]["code"] == "client_disconnected"
