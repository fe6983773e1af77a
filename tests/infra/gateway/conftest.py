"""A teacher on a real port that does what a test tells it to, and a gateway on another with the teacher behind it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.gateway.app import create_app
from tests.conftest import answering, living_in
from tests.infra.gateway.test_app import listening

Script = Callable[["Teacher"], None]
ANSWER = {"role": "assistant", "content": "On its way."}


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers by the script of the model that it is asked for.

    Attributes:
        scripts: By model; one that has none gets ANSWER.
        asked: (headers, body) of each request.
        left: Models whose client closed the connection before they were done.
    """

    protocol_version = "HTTP/1.1"
    url = ""
    scripts: dict[str, Script]
    asked: list[tuple[dict[str, str], dict[str, Any]]]
    left: list[str]

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(({k.lower(): v for k, v in self.headers.items()}, self.body))
        try:
            self.scripts.get(self.body["model"], Teacher.whole)(self)
        except OSError:
            self.left.append(self.body["model"])
            self.close_connection = True

    def reply(self, status: int, said: Any, **headers: str) -> None:
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(text)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text)

    def whole(self) -> None:
        self.reply(200, {"id": "chatcmpl-7", "choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]})

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def say(self, piece: bytes | dict[str, Any] | str) -> None:
        """One chunk of HTTP: bytes as they are, else an event."""
        if not isinstance(piece, bytes):
            piece = b"data: " + (piece if isinstance(piece, str) else json.dumps(piece)).encode() + b"\n\n"
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def close_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def chunk(text: str | None = None, finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    said = {**({"content": text} if text is not None else {}), **delta}
    return {
        "id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1756684873, "model": "big",
        "choices": [{"index": index, "delta": said, "finish_reason": finish}],
    }  # fmt: skip


@pytest.fixture(scope="session")
def teacher() -> Iterator[type[Teacher]]:
    Teacher.scripts, Teacher.asked, Teacher.left = {}, [], []
    with answering(Server(("127.0.0.1", 0), Teacher)) as address:
        Teacher.url = f"{address}/v1"
        yield Teacher


@pytest.fixture(scope="session")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow for all homes of these tests: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def open_house(registry_uri: str, teacher: type[Teacher], tmp_path: Path) -> Any:
    """`with open_house(TOKENS=...) as url`: a gateway on a port of its own, with these settings."""

    @contextmanager
    def opened(**settings: str) -> Iterator[str]:
        with (
            living_in(tmp_path / "home", **{"TEACHER": "", "MLFLOW": registry_uri, **settings}),
            listening(create_app(teacher.url)) as url,
        ):
            yield url

    return opened


@pytest.fixture
def url(open_house: Any) -> Iterator[str]:
    with open_house() as url:
        yield url


def eventually(ready: Callable[[], Any], seconds: float = 20) -> Any:
    """What `ready` gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found
