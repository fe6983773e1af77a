"""A teacher's endpoint on a real port that fails as a test tells it to, and the teacher that asks it, in a time of its
own."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from infra.settings import settings
from tasks.teachers import EndpointTeacher
from tasks.teachers.pace import Pace
from tests.conftest import answering


@dataclass
class Reply:
    """What the endpoint does with a request.

    Attributes:
        body: Sent as it is where it is bytes, else as JSON; None closes the connection without a word.
        declared: The length that is said, if it is not the body's.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    declared: int | None = None


def said(text: str, **more: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return Reply(200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})


def refusal(status: int, message: str = "no", code: Any = None, **headers: str) -> Reply:
    return Reply(status, {"error": {"message": message, "code": code}}, headers)


class Endpoint:
    """Attributes:
    asked: The bodies of the requests, as they came.
    headers: Those of the last one.
    most: How many were under way at once.
    """

    def __init__(self, reply: Callable[[str, int], Reply]) -> None:
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url, self.most, self._under_way = "", 0, 0
        self._lock = threading.Lock()

    @property
    def times(self) -> Counter[str]:
        """How often each question was asked."""
        return Counter(body["messages"][-1]["content"] for body in self.asked)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.asked.append(body)
            self.headers = {name.lower(): value for name, value in handler.headers.items()}
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            question = body["messages"][-1]["content"]
            tried = self.times[question]
        try:
            reply = self.reply(question, tried)
        finally:
            with self._lock:
                self._under_way -= 1
        time.sleep(reply.delay)
        if reply.body is None and reply.status == 200:
            handler.close_connection = True
            return
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        with suppress(OSError):  # who has waited too long is gone
            handler.send_response(reply.status)
            for name, value in {**reply.headers, "content-length": str(reply.declared or len(raw))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(raw)
            handler.close_connection = reply.declared is not None


@contextmanager
def serving(reply: Callable[[str, int], Reply]) -> Iterator[Endpoint]:
    endpoint = Endpoint(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            endpoint.serve(self)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with answering(server) as address:
        endpoint.url = f"{address}/v1"
        yield endpoint


class Imagined(Pace):
    """Time that passes only where somebody waits for it.

    Attributes:
        turns: When each turn came.
        rested: How long was waited, each time.
    """

    def __init__(self, per_minute: int = 0) -> None:
        super().__init__(per_minute)
        self.at = 0.0
        self.turns: list[float] = []
        self.rested: list[float] = []
        self.clock = threading.Lock()

    def now(self) -> float:
        return self.at

    def rest(self, seconds: float, stop: threading.Event) -> None:
        with self.clock:
            self.at += seconds
            self.rested.append(seconds)

    def turn(self, stop: threading.Event) -> None:
        super().turn(stop)
        self.turns.append(self.now())


def teacher(endpoint: Endpoint, pace: Pace | None = None, timeout: float = 5, **more: Any) -> EndpointTeacher:
    """The teacher of the settings, asking this endpoint, in imagined time."""
    made = EndpointTeacher.of(settings())
    return replace(made, url=endpoint.url, pace=pace or Imagined(), timeout=timeout, **more)
