"""What the gateway adds to a request: beside the bare upstream, streamed and whole, at a fixed rate; and 1,000 streams.

    python bench/gateway.py [requests a second] [seconds a round] [rounds]

Three processes besides this one: an upstream that speaks OpenAI's API and says the same to everybody (a stream as 16
chunks, 5 ms apart), the gateway with it as its teacher, and a load generator for each round. The rounds alternate,
bare, gateway, gateway, bare, in one run, so that both see the same machine. Arrivals are a Poisson process whose times
are drawn before the round begins, and a request's time counts from when it was due and not from when it could be sent:
a server that stalls is charged for all who came meanwhile (no coordinated omission). Upstream and generator are bare
asyncio protocols. Everything shares this machine's cores, with whatever
else runs there: the milliseconds are an upper bound, and the bare column says how much of that is the machine.

At the end the database must hold every call that was answered, and the 1,000 streams, which are open at once, must all
come to their end.
"""

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
WORDS, WORD_SECONDS, STREAMS = 16, 0.005, 1000
QUESTION = "Where is order 48213? I have been waiting since Tuesday, and nobody has told me anything. " * 4
SYSTEM = "You are the assistant of a shop. " * 30


def body(stream: bool, words: int = WORDS, milliseconds: int = int(WORD_SECONDS * 1000)) -> bytes:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    asked = {"model": "bench.gateway", "stream": stream, "max_tokens": words, "seed": milliseconds}
    return json.dumps({**asked, "messages": messages}, separators=(",", ":")).encode()


# -- the upstream ------------------------------------------------------------------------------------------------------

BASE = {"id": "chatcmpl-1", "created": 1756684873, "model": "big"}
USAGE = {"prompt_tokens": 300, "completion_tokens": WORDS, "total_tokens": 300 + WORDS}
ANSWER = {"role": "assistant", "content": "word " * WORDS}


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    said = {**BASE, "object": "chat.completion.chunk"}
    said["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return piece(b"data: " + json.dumps(said).encode() + b"\n\n")


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = json.dumps(
    {**BASE, "object": "chat.completion", "usage": USAGE,
     "choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]}
).encode()  # fmt: skip
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"
WORD, LAST = event({"content": "word "}), event({}, "stop") + piece(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport, self.held = transport, b""

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, found, rest = self.held.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not found or not length or len(rest) < int(length[1]):
            return
        self.held = b""
        asked = json.loads(rest)
        if asked.get("stream"):
            self.transport.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked"))
            self.say(asked["max_tokens"], asked["seed"] / 1000)
        else:
            self.transport.write(HEAD % (b"application/json", b"content-length: %d" % len(WHOLE)) + WHOLE)

    def say(self, left: int, pause: float) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(WORD if left else LAST)
        if left:
            asyncio.get_running_loop().call_later(pause, self.say, left - 1, pause)


async def upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# -- the load ----------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """A connection that is kept: one request at a time, of which it notes first word and end."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.done = transport, asyncio.get_running_loop().create_future()

    def ask(self, request: bytes) -> "asyncio.Future[bool]":
        self.first, self.got, self.done = 0.0, bytearray(), asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.first and (b'"content"' in data or b'"content"' in self.got):
            self.first = time.perf_counter()
        head, found, rest = self.got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        whole = len(rest) >= int(length[1]) if length else rest.endswith(b"0\r\n\r\n")
        if found and whole and not self.done.done():
            self.done.set_result(head.startswith(b"HTTP/1.1 200") and (bool(length) or b"[DONE]" in rest))

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)


class Load:
    def __init__(self, port: int, stream: bool, words: int, milliseconds: int) -> None:
        said = body(stream, words, milliseconds)
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        self.port, self.request = port, f"{head}{len(said)}\r\n\r\n".encode() + said
        self.idle: list[Connection] = []
        self.times: list[tuple[float, float, bool]] = []

    async def connection(self) -> Connection:
        _, made = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port)
        return made

    def kept(self) -> Connection | None:
        """A connection that is idle and that the server has not closed since (uvicorn does after 5 s)."""
        while self.idle:
            if not (mine := self.idle.pop()).transport.is_closing():
                return mine
        return None

    async def one(self, due: float) -> None:
        with suppress(OSError):
            mine = self.kept() or await self.connection()
            fine = await mine.ask(self.request)
            self.times.append((1000 * (mine.first - due), 1000 * (time.perf_counter() - due), fine))
            if fine:
                self.idle.append(mine)
            return
        self.times.append((0, 0, False))

    async def run(self, due: list[float]) -> None:
        self.idle = [await self.connection() for _ in range(min(32, len(due)))]
        began, asking = time.perf_counter() + 0.05, []
        for offset in due:
            if (wait := began + offset - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            asking.append(asyncio.create_task(self.one(began + offset)))
        await asyncio.gather(*asking)


def load(port: int, stream: bool, due: list[float], words: int, milliseconds: int) -> None:
    asked = Load(port, stream, words, milliseconds)
    run(asked.run(due))
    print(json.dumps(asked.times))


# -- the comparison ----------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    first: list[float]
    ended: list[float]
    failed: int


def measured(port: int, stream: bool, due: list[float], words: int = WORDS, pause: float = WORD_SECONDS) -> Seen:
    told = json.dumps([port, stream, due, words, int(1000 * pause)])
    done = subprocess.run([sys.executable, __file__, "load"], input=told, text=True, stdout=subprocess.PIPE, check=True)
    times = json.loads(done.stdout)
    fine = [(first, ended) for first, ended, good in times if good]
    return Seen([first for first, _ in fine], [ended for _, ended in fine], len(times) - len(fine))


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    drawn, at, due = random.Random(seed), 0.0, []
    while (at := at + drawn.expovariate(rate)) < seconds:
        due.append(at)
    return due


def compare(ports: dict[str, int], rate: float, seconds: float, rounds: int) -> int:
    """Print the table; how many calls the gateway answered."""
    answered = 0
    print(f"{rate:g} requests a second, {rounds} rounds of {seconds:g} s each, load average {os.getloadavg()[0]:.1f}")
    for stream in (False, True):
        seen: dict[str, list[Seen]] = {name: [] for name in ports}
        for number in range(rounds):
            for name in list(ports)[:: 1 if number % 2 else -1]:
                seen[name].append(measured(ports[name], stream, arrivals(rate, seconds, number)))
        for what in ("first", "ended") if stream else ("ended",):
            times = {name: sorted(t for one in some for t in getattr(one, what)) for name, some in seen.items()}
            cuts = {name: statistics.quantiles(some, n=1000) for name, some in times.items()}
            label = {"first": "stream, first word", "ended": "stream, end" if stream else "whole answer"}[what]
            shown = [f"{label:<19}"]
            for name, at in (("p50", 499), ("p99", 989)):
                bare, ours = cuts["bare"][at], cuts["gateway"][at]
                shown.append(f"{name} {bare:7.2f} → {ours:7.2f} ms: {ours - bare:+6.2f} ms, {ours / bare:5.2f} times")
            print("   ".join(shown), flush=True)
        failed = {name: sum(one.failed for one in some) for name, some in seen.items()}
        print(f"{'':<19} {len(times['gateway'])} requests each, failed {failed}", flush=True)
        answered += len(times["gateway"])
    return answered


def many_streams(port: int, process: int) -> int:
    import psutil

    before = psutil.Process(process).memory_info().rss
    seen = measured(port, True, arrivals(250, STREAMS / 250, 0)[:STREAMS], words=20, pause=0.5)
    grown = (psutil.Process(process).memory_info().rss - before) / 2**20
    print(f"{len(seen.ended) + seen.failed} streams of 10 s, begun within 4 s: {seen.failed} failed, {grown:+.0f} MB")
    return len(seen.ended)


@contextmanager
def started(log: Any, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        stderr=log,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def main(rate: float, seconds: float, rounds: int) -> None:
    from bench.swaps import answers
    from tests.mlflow_server import free_port

    with (
        tempfile.TemporaryDirectory() as place,
        open(Path(place, "log"), "w") as log,
        started(log, __file__, "upstream") as upstream,
    ):
        behind, port = int(upstream.stdout.readline()), free_port()  # type: ignore[union-attr]
        home = Path(place) / "home"
        chosen = {"HOME": str(home), "TEACHER": f"http://127.0.0.1:{behind}/v1", "GATEWAY_PORT": str(port)}
        with started(
            log, "-m", "flows.gateway", **{f"FLYWHEEL_{name}": value for name, value in chosen.items()}
        ) as gateway:
            while not answers(f"http://127.0.0.1:{port}"):
                time.sleep(0.2)
            warm = [measured(port, stream, arrivals(100, 2, 0)) for stream in (False, True)]
            answered = sum(len(one.ended) for one in warm)
            answered += compare({"bare": behind, "gateway": port}, rate, seconds, rounds)
            answered += many_streams(port, gateway.pid)
            gateway.terminate()
            ended = gateway.wait(60)
        print(f"{answered} calls were answered, {recorded(home)} are in the database; the gateway ended with {ended}")


def recorded(home: Path) -> int:
    import sqlite3

    with sqlite3.connect(home / "flywheel.db") as database:
        return int(database.execute("SELECT count(*) FROM interaction").fetchone()[0])


def run(work: Any) -> None:
    import uvloop

    uvloop.run(work)


if __name__ == "__main__":
    if sys.argv[1:] == ["upstream"]:
        run(upstream())
    elif sys.argv[1:] == ["load"]:
        load(*json.load(sys.stdin))
    else:
        sys.path.insert(0, str(ROOT))
        given = [float(value) for value in sys.argv[1:]]
        main(*[*given[:2], *map(int, given[2:3])] if len(given) == 3 else (200.0, 5.0, 6))
