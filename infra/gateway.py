"""The gateway: an OpenAI-compatible endpoint that answers, records every call, and takes feedback.

    POST /v1/chat/completions   the champion of the workload answers; without one, or where the request does not begin
                                with the prefix that the champion was trained on, the teacher does
    POST /v1/feedback           {"record_id", "kind": thumb | rating | correction | preference | label, "value"}, where
                                record_id is the id of the answer
    POST /v1/traces, /v1/logs   OpenTelemetry (OTLP/HTTP): calls of models, and evaluations of them
    GET  /v1/models             which workloads are served, and by which version
    GET  /healthz

The workload is the request's `model`, or the header `x-flywheel-workload`. What is recorded is what the next turn of
the wheel learns from. A second after the registry's alias `champion` moves, the new version is loaded beside the old
one; the old one answers what it has begun, then goes.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from infra import registry
from infra.database import records
from infra.database.jsontext import Rejected
from infra.database.messages import normalized_request
from infra.database.session import session
from infra.database.store import store
from infra.engines import Engine, load
from infra.settings import SetupError, settings
from infra.telemetry.otlp import Signal
from infra.telemetry.receiver import receive

log = logging.getLogger("flywheel.gateway")
SOURCE = "gateway"
POLL_SECONDS = 1.0


@dataclass
class Served:
    """A version that serves, and how many requests it is answering now."""

    version: str
    engine: Engine
    busy: int = 0
    retired: bool = False

    def release(self) -> None:
        self.busy -= 1
        if self.retired and not self.busy:
            self.engine.close()


class Refused(Exception):
    """A request that gets an error in OpenAI's form."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


class Gateway:
    """Champions by workload, the teacher behind them, and the record of what they said."""

    def __init__(self, teacher: Engine | str | None) -> None:
        self.teacher = teacher if not isinstance(teacher, str) else None
        self.upstream = teacher.rstrip("/") if isinstance(teacher, str) else None
        self.champions: dict[str, Served] = {}
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(600, connect=10))

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Serve the champions, follow the registry, and close everything at the end: the app's lifespan."""
        # The first look decides who answers the first request; a broken registry must not keep the teacher from it.
        try:
            await self.follow()
        except SetupError as problem:
            log.warning("no champion is served: %s", problem)
        watching = asyncio.create_task(self.watch())
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await self.close()

    # -- which version serves ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Follow the registry's aliases for as long as the gateway runs; a failure leaves what serves in place."""
        while True:
            try:
                await self.follow()
            except SetupError as problem:
                log.warning("the champions stay as they are: %s", problem)
            except Exception:
                log.exception("the champions stay as they are")
            await asyncio.sleep(POLL_SECONDS)

    async def follow(self) -> None:
        """Load each champion that is new, and retire the one before."""
        wanted = await run_in_threadpool(registry.champions)
        for workload, version in wanted.items():
            now = self.champions.get(workload)
            if now and now.version == version:
                continue
            found = await run_in_threadpool(registry.champion, workload)
            if found is None:
                continue
            engine = await run_in_threadpool(load, found.folder)
            self.champions[workload] = Served(found.version, engine)
            log.info("%s is now served by version %s", workload, found.version)
            if now:
                self.retire(now)
        for workload in self.champions.keys() - wanted.keys():
            self.retire(self.champions.pop(workload))

    @staticmethod
    def retire(served: Served) -> None:
        served.retired, served.busy = True, served.busy + 1
        served.release()

    async def close(self) -> None:
        for served in self.champions.values():
            self.retire(served)
        if self.teacher:
            self.teacher.close()
        await self.client.aclose()

    def models(self) -> dict[str, Any]:
        """What is served, in the form of OpenAI's list of models."""
        data = [
            {
                "id": workload, "object": "model", "owned_by": "flywheel", "version": served.version,
                "engine": served.engine.name,
            }
            for workload, served in self.champions.items()
        ]  # fmt: skip
        return {"object": "list", "data": data}

    # -- answering -----------------------------------------------------------------------------------------------

    async def complete(self, body: dict[str, Any], headers: dict[str, str]) -> Response:
        """Answer, record, and only then reply: what a customer has seen is never missing from the record."""
        workload = headers.get("x-flywheel-workload") or body["model"]
        started = time.monotonic()
        answer = await self.by_champion(workload, body)
        if answer is None:
            if self.upstream and body.get("stream"):
                return await self.stream_upstream(workload, body, headers, started)
            answer = await (self.by_upstream(body, headers) if self.upstream else self.by_teacher(workload, body))
        await run_in_threadpool(self.record, workload, body, answer, headers, 1000 * (time.monotonic() - started))
        if body.get("stream"):
            return StreamingResponse(events(answer), media_type="text/event-stream")
        return JSONResponse(answer)

    async def by_champion(self, workload: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The student's answer; nothing where there is no student for this request or it fails."""
        served = self.champions.get(workload)
        if served is None or (read := served.engine.strip(body)) is None:
            return None
        served.busy += 1
        try:
            return await self.ask(served.engine, read, registry.served_name(workload, served.version))
        except Refused:  # too long for the student; the teacher may have a longer context
            return None
        except Exception:
            log.exception("version %s of %s failed, the teacher answers", served.version, workload)
            return None
        finally:
            served.release()

    async def by_teacher(self, workload: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.teacher is None:
            raise Refused(503, f"no champion serves {workload!r} and there is no teacher; set FLYWHEEL_TEACHER")
        knows = self.teacher.manifest.get("workload", workload)
        read = self.teacher.strip(body)
        if knows != workload or read is None:
            problem = f"the teacher knows only {knows!r} with its own system prompt and tools"
            raise Refused(404, f"{problem}; set FLYWHEEL_TEACHER to another")
        return await self.ask(self.teacher, read, f"teacher:{self.teacher.folder.name}")

    @staticmethod
    async def ask(engine: Engine, request: dict[str, Any], name: str) -> dict[str, Any]:
        """One answer of an engine in OpenAI's form."""
        (reply,) = await run_in_threadpool(engine.chat, [request])
        if not reply.completion_tokens:
            raise Refused(400, f"the request has {reply.prompt_tokens} tokens, more than the model's context holds")
        return {
            "id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": name,
            "choices": [{"index": 0, "message": reply.message, "finish_reason": reply.finish_reason}],
            "usage": {
                "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
                "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            },
        }  # fmt: skip

    # -- the teacher's endpoint ----------------------------------------------------------------------------------

    def upstream_request(self, body: dict[str, Any], headers: dict[str, str]) -> httpx.Request:
        chosen = settings()
        key = chosen.teacher_key.get_secret_value()
        authorization = f"Bearer {key}" if key else headers.get("authorization", "")
        sent = {**body, "model": chosen.teacher_model or body["model"]}
        return self.client.build_request(
            "POST", f"{self.upstream}/chat/completions", json=sent,
            headers={"authorization": authorization} if authorization else {},
        )  # fmt: skip

    async def by_upstream(self, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        try:
            response = await self.client.send(self.upstream_request(body, headers))
            answer: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as problem:
            raise Refused(502, f"the teacher at {self.upstream} failed: {problem!r}") from problem
        if response.is_error or not answer.get("choices"):
            raise Refused(response.status_code if response.is_error else 502, json.dumps(answer.get("error", answer)))
        answer.setdefault("id", f"chatcmpl-{uuid4().hex}")
        return answer

    async def stream_upstream(
        self, workload: str, body: dict[str, Any], headers: dict[str, str], started: float
    ) -> Response:
        """Pass the teacher's chunks on as they come, and record the answer they make."""
        try:
            response = await self.client.send(self.upstream_request(body, headers), stream=True)
        except httpx.HTTPError as problem:
            raise Refused(502, f"the teacher at {self.upstream} failed: {problem!r}") from problem
        if response.is_error:
            text = (await response.aread()).decode(errors="replace")
            raise Refused(response.status_code, text)

        async def passed_on() -> AsyncIterator[bytes]:
            chunks: list[dict[str, Any]] = []
            try:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        chunks.append(json.loads(line[6:]))
                    yield f"{line}\n".encode()
            finally:
                await response.aclose()
                if chunks:
                    elapsed = 1000 * (time.monotonic() - started)
                    # Shielded: a client that hangs up cancels this generator, and what it was told still counts.
                    recording = run_in_threadpool(self.record, workload, body, chunks, headers, elapsed)
                    await asyncio.shield(asyncio.ensure_future(recording))

        return StreamingResponse(passed_on(), media_type="text/event-stream")

    # -- the record ----------------------------------------------------------------------------------------------

    @staticmethod
    def record(workload: str, body: dict[str, Any], answer: Any, headers: dict[str, str], latency: float) -> None:
        """Store a call; `answer` is a response or the chunks of one. The customer gets it even if this fails."""
        record = {
            "workload_id": workload, "conversation_id": headers.get("x-flywheel-conversation"),
            "client_id": headers.get("x-flywheel-client"), "latency_ms": latency, "request": body, "response": answer,
        }  # fmt: skip
        row = records.interaction
        try:
            with session() as db:
                if store(db, [row(record, source=SOURCE, at=datetime.now(UTC))]) == ["conflict"]:
                    # A teacher that repeats its ids. Feedback will join the first, but no call is lost.
                    store(db, [row({**record, "id": uuid4().hex}, source=SOURCE, at=datetime.now(UTC))])
        except Exception:
            log.exception("an answer of %s was given but not recorded", workload)

    @staticmethod
    def feedback(body: dict[str, Any]) -> str:
        """Store feedback; returns its id. Raises Refused for what is no feedback."""
        try:
            row = records.feedback(body, source=SOURCE, at=datetime.now(UTC))
        except Rejected as problem:
            raise Refused(422, str(problem)) from problem
        with session() as db:
            store(db, [row])
        return row.external_id


def events(answer: dict[str, Any]) -> AsyncIterator[bytes]:
    """A whole answer as the chunks of a stream: the message, the end, the usage."""
    base = {**{k: answer[k] for k in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    choice = answer["choices"][0]
    calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls") or ())]
    delta = {**choice["message"], **({"tool_calls": calls} if calls else {})}
    chunks = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {
            **base,
            "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}],
            "usage": answer["usage"],
        },
    ]

    async def lines() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    return lines()


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises Refused where it carries none."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")
    return body


def create_app(teacher: Engine | str | None = None) -> FastAPI:
    """The gateway with a teacher behind it: a loaded engine, which it closes at its end, an endpoint's URL, or none."""
    gateway = Gateway(teacher)

    app = FastAPI(title="Flywheel gateway", lifespan=gateway.running, docs_url="/docs")

    @app.exception_handler(Refused)
    async def refuse(request: Request, problem: Refused) -> Response:
        error = {
            "message": problem.message,
            "type": "invalid_request_error" if problem.status < 500 else "server_error",
        }
        return JSONResponse({"error": error}, problem.status)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await body_of(request)
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise Refused(400, "model: the name of the workload is needed")
        try:
            return await gateway.complete(normalized_request(body), dict(request.headers))
        except Rejected as problem:
            raise Refused(400, str(problem)) from problem

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> dict[str, str]:
        body = await body_of(request)
        return {"id": await run_in_threadpool(gateway.feedback, body)}

    @app.post("/v1/traces")
    async def traces(request: Request) -> Response:
        return await telemetry(request, "traces")

    @app.post("/v1/logs")
    async def logs(request: Request) -> Response:
        return await telemetry(request, "logs")

    async def telemetry(request: Request, signal: Signal) -> Response:
        kind, encoding = (request.headers.get(f"content-{name}", "") for name in ("type", "encoding"))
        answer = await run_in_threadpool(receive, await request.body(), signal, kind, encoding)
        return Response(answer.body, answer.status, media_type=answer.media_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return gateway.models()

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run the gateway until it is told to stop."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
