"""The teacher behind an OpenAI-compatible endpoint: asked whole or as a stream of server-sent events.

A stream is passed on line by line as it comes: `data:` with a chunk, comments (`: keep-alive`), blank lines. Only the
id of each chunk is replaced by ours. Lines end with LF or CRLF (WHATWG HTML, section 9.2.6) and with nothing else:
U+2028 may stand in JSON, and breaks text that is split by `str.splitlines`, as httpx's own `aiter_lines` is.

The endpoint's key is FLYWHEEL_TEACHER_KEY. Without it the client's own Authorization header is passed on, unless the
gateway has tokens: the header holds one of them then.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

from infra.database.jsontext import Rejected, dumps
from infra.database.messages import assembled
from infra.gateway.body import document
from infra.gateway.errors import Failed
from infra.settings import settings

AWAY = (aiohttp.ClientError, TimeoutError, OSError)
HUNG_UP = {
    "message": "the client hung up, or the gateway was stopped", "type": "cut_off", "param": None,
    "code": "client_disconnected",
}  # fmt: skip
BROKE_OFF = "teacher_broke_off"
SILENCE_SECONDS, CONNECT_SECONDS, END_SECONDS = 600, 10, 1
# Servers of models close a connection that was idle for 5 s (uvicorn's default): a request must not meet that.
KEEP_SECONDS = 4


class Upstream:
    """An endpoint at `url`, such as https://api.example.com/v1."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.shown = str(URL(self.url).with_user(None).with_query(None)).rstrip("/")
        self.made: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Connections to the endpoint, as many as there are calls; made in the loop that uses them."""
        if self.made is None:
            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
            secure = httpx.create_ssl_context()  # as all our clients: certifi's authorities, or SSL_CERT_FILE's
            connector = aiohttp.TCPConnector(limit=0, ssl=secure, keepalive_timeout=KEEP_SECONDS)
            self.made = aiohttp.ClientSession(connector=connector, timeout=limits, proxy=_proxy(URL(self.url)))
        return self.made

    async def close(self) -> None:
        if self.made:
            await self.made.close()

    async def open(self, body: dict[str, Any], authorization: str) -> aiohttp.ClientResponse:
        """The response to a request, its head read and its body not.

        Raises:
            Failed: There is none: 504 if it took too long, the endpoint's status if that concerns the client, else 502.
        """
        chosen = settings()
        key = chosen.teacher_key.get_secret_value()
        if key or chosen.tokens.get_secret_value():
            authorization = f"Bearer {key}" if key else ""
        headers = {"content-type": "application/json", **({"authorization": authorization} if authorization else {})}
        asked = dumps({**body, "model": chosen.teacher_model or body["model"]})
        try:
            response = await self.session.post(
                f"{self.url}/chat/completions", data=asked, headers=headers, allow_redirects=False
            )
            if not 200 <= response.status < 300:
                raise self.failed(response, await response.read(), authorization)
        except AWAY as problem:
            raise self.away(problem) from problem
        return response

    async def read(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The rest of a response, as an answer. Raises Failed, as `open` does."""
        try:
            raw = await response.read()
            answer = document(raw)
        except AWAY as problem:
            raise self.away(problem) from problem
        except Rejected as problem:
            said = f"the teacher at {self.shown} gave no answer: {problem}"
            raise Failed(502, said, code="teacher_failed") from problem
        if not answer.get("choices"):
            raise self.failed(response, raw, "")
        return answer

    def away(self, problem: Exception) -> Failed:
        late = isinstance(problem, TimeoutError)
        said = f"{type(problem).__name__}: {problem}".rstrip(": ")
        return Failed(504 if late else 502, f"the teacher at {self.shown} failed: {said}", code="teacher_failed")

    def failed(self, response: aiohttp.ClientResponse, raw: bytes, authorization: str) -> Failed:
        """What the endpoint says is wrong, as it says it; without the key, if it repeats that."""
        text = raw.decode(errors="replace")
        secret = authorization.rpartition(" ")[2]
        text = text.replace(secret, "***") if secret else text
        try:
            said: Any = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError, RecursionError):
            said = f"{response.status} {text[:500]}".strip()
        told = {"message": said} if isinstance(said, str) else said if isinstance(said, dict) else {}
        # Not the client's fault: the key is ours.
        ours = response.status in (401, 403) and bool(settings().teacher_key or settings().tokens)
        status = response.status if response.status >= 400 and not ours else 502
        again = {name: response.headers[name] for name in ("retry-after",) if name in response.headers}
        problem = Failed(status, f"the teacher at {self.shown} gave no answer", code="teacher_failed", headers=again)
        problem.error |= {name: value for name, value in told.items() if name in problem.error}
        return problem


def _proxy(url: URL) -> str | None:
    """The proxy that the environment names for an address."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)


class Relay:
    """A stream on its way from the endpoint to a client: its chunks as they pass, and how it ended.

    Attributes:
        chunks: What the client was sent, up to now.
        problem: Why the endpoint broke off; empty where it did not, or has not yet.
        done: Whether the endpoint said that it has said everything.
    """

    def __init__(self, response: aiohttp.ClientResponse, id: str) -> None:
        self.response, self.id = response, id
        self.chunks: list[dict[str, Any]] = []
        self.theirs: Any = None
        self.problem, self.done = "", False

    async def passed(self) -> AsyncIterator[bytes]:
        """The endpoint's lines, all but the end; those that come together are passed on together."""
        rest = b""
        try:
            async for block in self.response.content.iter_any():
                *lines, rest = (rest + block).split(b"\n")
                passed = [self._passed(line.removesuffix(b"\r"), True) for line in lines if not self.done]
                if passed and (together := b"".join(passed)):
                    yield together
                if self.done:
                    return
            if rest and (last := self._passed(rest, False)):
                yield last
            if not self.done:
                self.problem = "the connection was closed"
        except AWAY as problem:
            self.problem = f"{type(problem).__name__}: {problem}".rstrip(": ")

    def _passed(self, line: bytes, ended: bool) -> bytes:
        """A line as it is passed on: with our id, and without the end of the stream or half a chunk at it."""
        if self.done:
            return b""
        if line.startswith(b"data:"):
            said = line[5:].strip()
            if said == b"[DONE]":
                self.done = True
                return b""
            line = self._noted(said) or (line if ended else b"")
        return line + b"\n"

    def _noted(self, said: bytes) -> bytes | None:
        try:
            chunk = document(said)
        except Rejected:
            return None
        if "choices" in chunk:
            self.theirs = self.theirs or chunk.get("id")
            chunk["id"] = self.id
        self.chunks.append(chunk)
        return b"data: " + dumps(chunk)

    async def close(self) -> None:
        """Give the connection back; it is kept for the next call where the endpoint has ended its answer."""
        with suppress(*AWAY):
            async with asyncio.timeout(END_SECONDS if self.done else 0):
                while not self.response.content.at_eof():
                    await self.response.content.readany()
        self.response.close()

    @property
    def whole(self) -> bool:
        """Whether every choice that was begun was also finished."""
        parts = [part for chunk in self.chunks for part in _choices(chunk)]
        begun, finished = (
            {str(part.get("index", 0)) for part in some}
            for some in (parts, [part for part in parts if part.get("finish_reason")])
        )
        return bool(begun) and begun == finished

    @property
    def error(self) -> dict[str, Any] | None:
        """What kept the answer from being whole."""
        if self.whole:
            return None
        said = [chunk["error"] for chunk in self.chunks if chunk.get("error")]
        if said:
            return said[0] if isinstance(said[0], dict) else {"message": str(said[0])}
        if self.problem:
            return Failed(502, f"the teacher broke off its answer: {self.problem}", code=BROKE_OFF).error
        if self.done:
            return Failed(502, "the teacher ended its answer without a finish_reason", code=BROKE_OFF).error
        return dict(HUNG_UP)

    def end(self) -> bytes:
        """What closes the stream: an error where the endpoint broke off without one of its own, as OpenAI sends it."""
        if self.done or self.whole:
            return b"data: [DONE]\n\n"
        if any(chunk.get("error") for chunk in self.chunks):
            return b"\n"
        return b"\ndata: " + dumps({"error": self.error}) + b"\n\n"

    def response_of(self) -> dict[str, Any]:
        """What there is of the answer, in one piece, with the error that it ended in."""
        ended = {"error": error} if (error := self.error) else {}
        named = {"upstream_id": self.theirs} if self.theirs else {}
        try:
            return {**assembled([*self.chunks, ended]), **named}
        except Exception:  # chunks that are none: all are kept, in quarantine
            return {"choices": self.chunks, **ended, **named}


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [part for part in choices if isinstance(part, dict)] if isinstance(choices, list) else []


def events(answer: dict[str, Any]) -> list[bytes]:
    """A whole answer as the events of a stream: each choice's message and end, then the usage."""
    base = {key: value for key, value in answer.items() if key not in ("choices", "usage")}
    base["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for number, choice in enumerate(answer["choices"]):
        message = choice["message"]
        calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls") or ())]
        at = {"index": choice.get("index", number)}
        delta = {**message, **({"tool_calls": calls} if calls else {})}
        chunks += [
            {**base, "choices": [{**at, "delta": delta, "finish_reason": None}]},
            {**base, "choices": [{**at, "delta": {}, "finish_reason": choice.get("finish_reason")}]},
        ]
    if answer.get("usage"):
        chunks[-1]["usage"] = answer["usage"]
    return [*(b"data: " + dumps(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]
