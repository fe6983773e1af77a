"""A call from its request to its record: the champion is asked, else the teacher, and what comes of it is kept.

| what came of it                             | is recorded as                                                       |
|---------------------------------------------|----------------------------------------------------------------------|
| an answer, streamed or not                  | the answer, before the client has its end                            |
| a stream that the client or the teacher cut | what there was, `finish_reason: cut_off`, and `error` beside it      |
| the teacher's error, or no teacher reached  | `{"error": ...}`                                                     |
| a champion, or a student in a canary, broke | `{"error": ...}`, as a call of its own beside the one's who answered |
| a client that left before the answer        | the answer                                                           |

A request that nobody was asked to answer (no JSON, no messages, no teacher) is told what is wrong and not recorded.
What a student says in shadow is no call: `rollouts.py`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infra.engines import Engine
from infra.gateway.errors import Failed, Refused
from infra.gateway.record import Call, Recorder
from infra.gateway.rollouts import Rollouts
from infra.gateway.serving import Champions, by_teacher
from infra.gateway.upstream import HUNG_UP, Relay, Upstream, events

Keep = Callable[[dict[str, Any]], Awaitable[None]]


class Gateway:
    """Champions by workload, the teacher behind them, and the record of what they said."""

    def __init__(self, teacher: Engine | str | None) -> None:
        self.teacher = teacher if not isinstance(teacher, str) else None
        self.upstream = Upstream(teacher) if isinstance(teacher, str) else None
        self.champions, self.recorder = Champions(), Recorder()
        self.rollouts = Rollouts(self.champions)

    @contextlib.asynccontextmanager
    async def running(self, app: Any) -> AsyncIterator[None]:
        """Serve the champions, follow the registry, record, and close everything at the end: the app's lifespan."""
        await self.champions.begin()
        await self.recorder.begin()
        await self.rollouts.begin()
        watching = [asyncio.create_task(part.watch()) for part in (self.champions, self.recorder, self.rollouts)]
        watching.append(asyncio.create_task(self.rollouts.work()))
        yield
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await self.recorder.close()
        await self.rollouts.close()
        self.champions.close()
        if self.teacher:
            self.teacher.close()
        if self.upstream:
            await self.upstream.client.aclose()

    async def complete(self, call: Call, authorization: str) -> Response:
        """Answer, record, and only then reply: what a customer has seen is never missing from the record.

        Raises:
            Refused: Nobody answers; if somebody was asked, that is recorded.
        """
        self.recorder.open.add(call.id)
        named = {"x-request-id": call.id}
        try:
            answer = await self.answer(call, authorization)
            if isinstance(answer, Relay):
                return Relayed(answer, partial(self.keep, call), named)
        except Failed as problem:
            problem.headers |= named
            await self.keep(call, problem.record)
            raise
        except Refused:
            self.rollouts.done(call, None)
            self.recorder.open.discard(call.id)
            raise
        except asyncio.CancelledError:
            await self.keep(call, {"error": HUNG_UP})
            raise
        except Exception as problem:
            said = f"the gateway failed: {type(problem).__name__}"
            await self.keep(call, Failed(500, said, code="gateway_failed").record)
            raise
        await self.keep(call, answer)
        if not call.body.get("stream"):
            return Response(json.dumps(answer), headers=named, media_type="application/json")
        return Response(b"".join(events(answer)), headers=named, media_type="text/event-stream")

    async def keep(self, call: Call, response: dict[str, Any]) -> None:
        """Record what came of a call."""
        self.rollouts.done(call, response)
        await self.recorder.keep(call.record(response))

    async def answer(self, call: Call, authorization: str) -> dict[str, Any] | Relay:
        """Whoever answers first, in that order: a challenger whose call it is, champion, loaded teacher, endpoint."""
        answer = await self.by_challenger(call)
        if answer is None:
            answer = await self.by_champion(call)
        if answer is not None:
            return answer
        if self.upstream is None:
            return await by_teacher(self.teacher, call.workload, call.body, call.id)
        response = await self.upstream.open(call.body, authorization)
        if call.body.get("stream") and "json" not in response.headers.get("content-type", ""):
            return Relay(response, call.id)
        said = await self.upstream.read(response)
        return {**said, "id": call.id, **({"upstream_id": said["id"]} if said.get("id") else {})}

    async def by_challenger(self, call: Call) -> dict[str, Any] | None:
        try:
            return await self.rollouts.answer(call)
        except Failed as problem:
            await self.tried(call, "challenger", problem)
            return None

    async def by_champion(self, call: Call) -> dict[str, Any] | None:
        try:
            return await self.champions.answer(call.workload, call.body, call.id)
        except Failed as problem:
            self.rollouts.failed(call)
            await self.tried(call, "champion", problem)
            return None

    async def tried(self, call: Call, who: str, problem: Failed) -> None:
        # A call of its own, in a conversation of its own: another's answer is what the customer saw.
        own = replace(call, id=f"{call.id}-{who}", conversation=None)
        await self.recorder.keep(own.record(problem.record))

    def models(self) -> dict[str, Any]:
        """What is served, in the form of OpenAI's list; beside it what is under way, and what cannot be served."""
        problems = {
            workload: f"version {problem.version}: {problem.said}"
            for workload, problem in self.champions.problems.items()
        }
        listed = {"object": "list", "data": self.champions.models()}
        return {**listed, "rollouts": self.rollouts.models(), "problems": problems}


class Relayed(StreamingResponse):
    """A stream from the teacher, which is kept however it ends: whole, broken off, or with the client gone."""

    def __init__(self, relay: Relay, keep: Keep, headers: Mapping[str, str]) -> None:
        super().__init__(self.pieces(), headers=headers, media_type="text/event-stream")
        self.relay, self.keep = relay, keep
        self.recorded = False

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self.relay.passed():
            yield piece
        await self.record()
        yield self.relay.end()

    async def record(self) -> None:
        if not self.recorded:
            self.recorded = True
            await self.keep(self.relay.response_of())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.record()
            await self.relay.response.aclose()
