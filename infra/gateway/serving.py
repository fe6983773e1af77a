"""Who answers in this process: the champion of each workload, as the registry says, and a teacher that is loaded.

A second after the registry's alias `champion` moves, the new version is loaded beside the old one; the old one answers
what it has begun, then goes. A version that is not what was registered, or that no engine loads, changes nothing: the
old one goes on, the log and `/v1/models` say why, and it is tried again, less and less often. An engine that has died
is loaded anew; until then the teacher answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from infra import promotions, registry
from infra.engines import Engine, load
from infra.engines.engine import ABSTAINED
from infra.gateway.errors import Failed, Refused, trace
from infra.settings import SetupError

log = logging.getLogger("flywheel.gateway")
POLL_SECONDS = 1.0
RETRY_SECONDS = 60.0  # a large file is hashed at each try
Run = Callable[..., Awaitable[Any]]


@dataclass
class Served:
    """A version that serves, and how many requests it is answering now."""

    workload: str
    version: str
    engine: Engine
    busy: int = 0
    retired: bool = False

    def release(self) -> None:
        self.busy -= 1
        if self.retired and not self.busy:
            self.engine.close()

    def retire(self) -> None:
        self.retired, self.busy = True, self.busy + 1
        self.release()


async def loaded(workload: str, version: str, replace: bool = False) -> Served:
    """A registered version, its files verified, ready to answer; `replace` as of `load`.

    Raises:
        SetupError: Its files are not what was registered, or no engine loads them.
    """
    found = await run_in_threadpool(registry.version, workload, version)
    return Served(workload, version, await run_in_threadpool(load, found.folder, replace))


class Problem(NamedTuple):
    """Why a version is not served, and when (monotonic) it is tried again after `wait` seconds."""

    version: str
    said: str
    wait: float
    again: float


class Champions:
    """What serves, by workload.

    Attributes:
        wanted: What the registry said last; None before it has said anything.
        problems: By workload, why the version that should serve does not.
        lock: Held while the champions change.
    """

    def __init__(self) -> None:
        self.served: dict[str, Served] = {}
        self.wanted: dict[str, str] | None = None
        self.problems: dict[str, Problem] = {}
        self.lock = asyncio.Lock()
        self.moves = promotions.Watch()

    async def begin(self) -> None:
        """The first look, which decides who answers the first request; a broken registry leaves that to the teacher."""
        try:
            await self.follow()
        except SetupError as problem:
            log.warning("no champion is served: %s", problem)

    async def watch(self) -> None:
        """Follow the registry's aliases for as long as the gateway runs; a failure leaves what serves in place."""
        while True:
            try:
                await self.follow()
            except SetupError as problem:
                log.warning("the champions stay as they are: %s", problem)
            except Exception as problem:
                log.error("the champions stay as they are: %s", trace(problem))
            await asyncio.sleep(POLL_SECONDS)

    async def follow(self, ready: Served | None = None) -> None:
        """Load each champion that is new, and retire the one before; one that cannot be loaded keeps no other.

        Args:
            ready: A version that is loaded already, to be taken if it is a champion now, and else to be retired.
        """
        async with self.lock:
            self.wanted = await run_in_threadpool(registry.champions)
            await run_in_threadpool(self.moves.look, self.wanted)
            for workload, version in self.wanted.items():
                now = self.served.get(workload)
                if now and now.version == version and now.engine.alive:
                    self.problems.pop(workload, None)
                elif ready and (ready.workload, ready.version) == (workload, version):
                    self._serve(ready)
                    ready = None
                else:
                    await self._replace(workload, version)
            for workload in self.served.keys() - self.wanted.keys():
                self.served.pop(workload).retire()
            if ready:
                ready.retire()

    async def _replace(self, workload: str, version: str) -> None:
        known = self.problems.get(workload)
        if known and known.version == version and time.monotonic() < known.again:
            return
        try:
            self._serve(await loaded(workload, version, replace=True))
        except Exception as problem:
            said = str(problem) if isinstance(problem, SetupError) else f"it fails to load ({type(problem).__name__})"
            if known is None or (known.version, known.said) != (version, said):
                told = said if isinstance(problem, SetupError) else trace(problem)
                log.error("%s: version %s is not served: %s", workload, version, told)
            wait = min(2 * known.wait, RETRY_SECONDS) if known and known.version == version else POLL_SECONDS
            self.problems[workload] = Problem(version, said, wait, time.monotonic() + wait)

    def _serve(self, ready: Served) -> None:
        before = self.served.get(ready.workload)
        self.served[ready.workload] = ready
        self.problems.pop(ready.workload, None)
        log.info("%s is now served by version %s", ready.workload, ready.version)
        if before:
            before.retire()

    def close(self) -> None:
        for served in self.served.values():
            served.retire()

    def models(self) -> list[dict[str, Any]]:
        """What is served, in the form of OpenAI's list of models."""
        return [
            {
                "id": workload, "object": "model", "owned_by": "flywheel", "version": served.version,
                "engine": served.engine.name,
            }
            for workload, served in self.served.items()
        ]  # fmt: skip

    async def answer(self, workload: str, body: dict[str, Any], id: str) -> dict[str, Any] | None:
        """The student's answer; nothing where there is none for this request, it is too long for it, or it abstains.

        Raises:
            Failed: The student broke.
        """
        served = self.served.get(workload)
        if served is None or (read := served.engine.strip(body)) is None:
            return None
        served.busy += 1
        try:
            return await ask(served.engine, read, registry.served_name(workload, served.version), id)
        except Failed:
            raise
        except Refused:  # too long for the student, or none of a classifier's answers
            return None
        finally:
            served.release()


async def by_teacher(teacher: Engine | None, workload: str, body: dict[str, Any], id: str) -> dict[str, Any]:
    """The answer of a teacher that is loaded.

    Raises:
        Refused: There is none for this request.
        Failed: It broke.
    """
    if teacher is None:
        raise Refused(503, f"no champion answers this of {workload!r} and there is no teacher; set FLYWHEEL_TEACHER")
    knows = teacher.manifest.get("workload", workload)
    read = teacher.strip(body)
    if knows != workload or read is None:
        problem = f"the teacher knows only {knows!r} with its own system prompt and tools"
        raise Refused(404, f"{problem}; set FLYWHEEL_TEACHER to another")
    return await ask(teacher, read, f"teacher:{teacher.folder.name}", id)


async def ask(
    engine: Engine, request: dict[str, Any], name: str, id: str, run: Run = run_in_threadpool
) -> dict[str, Any]:
    """One answer of an engine in OpenAI's form, which is waited for by `run`.

    Raises:
        Refused: The request is longer than the model's context, or a classifier abstains.
        Failed: The engine broke.
    """
    try:
        (reply,) = await run(engine.chat, [request])
    except Exception as problem:
        log.error("%s failed: %s", name, trace(problem))
        failed = Failed(500, f"{name} failed: {type(problem).__name__}", code="engine_failed")
        failed.model = name
        raise failed from problem
    if reply.finish_reason == ABSTAINED:
        raise Refused(422, f"{name} has no answer of which it is sure enough", code="abstained")
    if not reply.completion_tokens:
        raise Refused(
            400, f"the request has {reply.prompt_tokens} tokens, more than the model's context holds",
            code="context_length_exceeded",
        )  # fmt: skip
    return {
        "id": id, "object": "chat.completion", "created": int(time.time()), "model": name,
        "choices": [{"index": 0, "message": reply.message, "finish_reason": reply.finish_reason}],
        "usage": {
            "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
    }  # fmt: skip
