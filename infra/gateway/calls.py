"""A call from its request to its record: the champion is asked, else the teacher, and what comes of it is kept.

| what came of it                             | is recorded as                                                       |
|---------------------------------------------|----------------------------------------------------------------------|
| an answer, streamed or not                  | the answer, in the journal before the client has its end             |
| a stream that the client or the teacher cut | what there was, `finish_reason: cut_off`, and `error` beside it      |
| the teacher's error, or no teacher reached  | `{"error": ...}`                                                     |
| a champion, or a student in a canary, broke | `{"error": ...}`, as a call of its own beside the one's who answered |
| a client that left before the answer        | the answer                                                           |

A request that nobody was asked to answer (no JSON, no messages, no teacher) is told what is wrong and not recorded.
What a student says in shadow is no call: `rollouts.py`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from prometheus_client import Gauge
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infra.database.jsontext import dumps
from infra.engines import Engine
from infra.gateway.errors import Failed, Refused
from infra.gateway.metrics import Metrics
from infra.gateway.record import Call, Recorder
from infra.gateway.rollouts import Rollouts
from infra.gateway.serving import Champions, by_teacher
from infra.gateway.upstream import BROKE_OFF, HUNG_UP, Relay, Upstream, events

EVENTS = "text/event-stream"
CUT_OFF = (HUNG_UP["code"], BROKE_OFF)
Keep = Callable[[dict[str, Any]], None]


class Gateway:
    """Champions by workload, the teacher behind them, and the record of what they said.

    Attributes:
        stopping: Whether the process is about to end: what has begun goes on, nothing new is begun.
    """

    def __init__(self, teacher: Engine | str | None) -> None:
        self.teacher = teacher if not isinstance(teacher, str) else None
        self.upstream = Upstream(teacher) if isinstance(teacher, str) else None
        self.metrics = Metrics()
        self.champions, self.recorder = Champions(), Recorder(self.metrics)
        self.rollouts = Rollouts(self.champions)
        self.stopping = False

    @contextlib.asynccontextmanager
    async def running(self, app: Any) -> AsyncIterator[None]:
        """Serve the champions, follow the registry, record, and close everything at the end: the app's lifespan."""
        await self.champions.begin()
        await self.recorder.begin()
        await self.rollouts.begin()
        parts = (self.champions, self.recorder, self.rollouts)
        storing = asyncio.create_task(self.recorder.store())
        watching = [asyncio.create_task(part.watch()) for part in parts]
        watching.append(asyncio.create_task(self.rollouts.work()))
        yield
        await ended(watching)
        await self.recorder.close()
        await ended([storing])
        await self.rollouts.close()
        self.champions.close()
        if self.teacher:
            self.teacher.close()
        if self.upstream:
            await self.upstream.close()

    def ready(self) -> str:
        """Why no call should be sent here now; empty where there is no reason not to."""
        if self.stopping:
            return "it is stopping"
        if self.recorder.away and self.recorder.unwritable:
            return f"nothing can be recorded: the database is away, the spool {self.recorder.unwritable}"
        missing = sorted((self.champions.wanted or {}).keys() - self.champions.served.keys())
        if (missing or self.champions.wanted is None) and not (self.teacher or self.upstream):
            of = f" of {', '.join(missing)}" if missing else ", for the registry has not said which,"
            return f"no champion{of} is loaded, and there is no teacher"
        return ""

    async def complete(self, call: Call, authorization: str) -> Response:
        """Answer, record, and only then reply: what a customer has seen is never missing from the record.

        Raises:
            Refused: Nobody answers; if somebody was asked, that is recorded.
        """
        self.recorder.open.add(call.id)
        try:
            answer = await self.answer(call, authorization)
            if isinstance(answer, Relay):
                return Relayed(answer, partial(self.keep, call), self.metrics.open_streams)
        except Failed as problem:
            self.keep(call, problem.record)
            raise
        except Refused:
            call.outcome = "refused"
            self.rollouts.done(call, None)
            self.recorder.open.discard(call.id)
            raise
        except asyncio.CancelledError:
            self.keep(call, {"error": HUNG_UP})
            raise
        except Exception as problem:
            said = f"the gateway failed: {type(problem).__name__}"
            self.keep(call, Failed(500, said, code="gateway_failed").record)
            raise
        self.keep(call, answer)
        if not call.body.get("stream"):
            return Response(dumps(answer), media_type="application/json")
        return Response(b"".join(events(answer)), media_type=EVENTS)

    def keep(self, call: Call, response: dict[str, Any]) -> None:
        """Record what came of a call."""
        error = response.get("error")
        call.outcome = "ok" if not error else "cut_off" if error.get("code") in CUT_OFF else "error"
        self.rollouts.done(call, response)
        self.recorder.keep(call.record(response))

    async def answer(self, call: Call, authorization: str) -> dict[str, Any] | Relay:
        """Whoever answers first, in that order: a challenger whose call it is, champion, loaded teacher, endpoint."""
        for call.served_by, asked in (("challenger", self.by_challenger), ("champion", self.by_champion)):
            if (answer := await asked(call)) is not None:
                return answer
        call.served_by = "teacher" if self.upstream or self.teacher else ""
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
            self.tried(call, "challenger", problem)
            return None

    async def by_champion(self, call: Call) -> dict[str, Any] | None:
        try:
            return await self.champions.answer(call.workload, call.body, call.id)
        except Failed as problem:
            self.rollouts.failed(call)
            self.metrics.champion_failures.labels(self.metrics.workload(call.workload)).inc()
            self.tried(call, "champion", problem)
            return None

    def tried(self, call: Call, who: str, problem: Failed) -> None:
        # A call of its own, in a conversation of its own: another's answer is what the customer saw.
        own = replace(call, id=f"{call.id}-{who}", conversation=None)
        self.recorder.keep(own.record(problem.record))

    def models(self) -> dict[str, Any]:
        """What is served, in the form of OpenAI's list; beside it what is under way, and what cannot be served."""
        problems = {
            workload: f"version {problem.version}: {problem.said}"
            for workload, problem in self.champions.problems.items()
        }
        listed = {"object": "list", "data": self.champions.models()}
        return {**listed, "rollouts": self.rollouts.models(), "problems": problems}


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Relayed(Response):
    """A stream from the teacher, which is kept however it ends: whole, broken off, or with the client gone.

    Starlette's StreamingResponse does the same by a group of tasks, for a third of the time that the gateway takes.
    """

    def __init__(self, relay: Relay, keep: Keep, open_streams: Gauge) -> None:
        # Proxies before us must not hold pieces back until they have a page full.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=EVENTS)
        del self.headers["content-length"]
        self.relay, self.keep, self.open_streams = relay, keep, open_streams
        self.recorded = self.left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        listening = asyncio.create_task(self.hear(receive, mine))
        with self.open_streams.track_inprogress():
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for piece in self.relay.passed():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                self.record()
                await send({"type": "http.response.body", "body": self.relay.end(), "more_body": False})
            except asyncio.CancelledError:
                if not self.left:
                    raise
                mine.uncancel()
            finally:
                listening.cancel()
                self.record()
                await self.relay.close()

    async def hear(self, receive: Receive, task: asyncio.Task[None]) -> None:
        """Stop the stream when its client is gone, though the teacher may be silent then."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left = True
        task.cancel()

    def record(self) -> None:
        if not self.recorded:
            self.recorded = True
            self.keep(self.relay.response_of())
