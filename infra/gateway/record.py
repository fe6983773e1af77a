"""What the gateway records: every call and every feedback, into the database, or into the spool while it is away.

Each record passes through `Recorder.keep`, the one place between what was said and where it is stored. A database that
is down, locked or full costs a call a few seconds; from then on records go to the spool at once, which is drained as
soon as the database takes rows again. A store that was given up and succeeds after all is no harm: the line in the
spool has the same id. Where the spool cannot be written either, records wait in memory, up to a limit. Lost is only
what was on its way when the process was killed, and its client has not had the end of it either.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from uuid import uuid4

from infra.database.jsontext import dumps
from infra.database.store import Fate
from infra.gateway import spool
from infra.gateway.errors import trace
from infra.privacy.redaction import redactor
from infra.settings import SetupError

log = logging.getLogger("flywheel.gateway")
STORE_SECONDS = 3.0  # SQLite alone would wait a minute for a lock, and a customer with it
OPEN_SECONDS = 30.0
POLL_SECONDS = 1.0
CLOSE_SECONDS = 10.0
HELD_BYTES = 64 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request on its way, under the id that its answer and its record will have.

    The id is ours and not the teacher's: feedback names it, and there are servers that number their answers up to 999.
    """

    workload: str
    body: dict[str, Any]
    client: str | None = None
    conversation: str | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)

    def record(self, response: dict[str, Any]) -> dict[str, Any]:
        """The call and what came of it (an answer, what there is of one, or `{"error": ...}`)."""
        return {
            "id": self.id, "timestamp": self.at.isoformat(), "workload_id": self.workload,
            "conversation_id": self.conversation, "client_id": self.client,
            "latency_ms": 1000 * (time.monotonic() - self.began), "request": self.body, "response": response,
        }  # fmt: skip


class Recorder:
    """Keeps records; nothing that was given to it is lost, whether or not whoever gave it still waits.

    Attributes:
        open: Ids of the calls that are yet to be recorded; `close` waits for them.
        away: Whether the database took nothing when it was last asked.
    """

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.away = False
        self.held: deque[bytes] = deque()
        self.tasks: set[asyncio.Task[Any]] = set()
        # Threads of their own: those that wait for a lock must keep neither the engines nor the spool from theirs.
        self.storing, self.spooling, self.draining = (ThreadPoolExecutor(n, "record") for n in (8, 1, 1))

    async def keep(self, record: dict[str, Any]) -> tuple[Fate | Literal["spooled"], str]:
        """Store a record; what became of it, and of one in quarantine why. Goes on if its caller is cancelled."""
        task = asyncio.create_task(self._keep(record))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await asyncio.shield(task)

    async def _keep(self, record: dict[str, Any]) -> tuple[Fate | Literal["spooled"], str]:
        try:
            line = dumps(redactor().record(record, "client_id"))  # here already, for it may go to the spool
            if not self.away and (fate := await self._store(line)):
                return fate
            try:
                await self._in(self.spooling, spool.append, line)
            except OSError as problem:
                self._hold(line, problem)
            return "spooled", ""
        finally:
            self.open.discard(record["id"])

    async def _store(self, line: bytes) -> tuple[Fate, str] | None:
        storing = self._in(self.storing, spool.put, [spool.read(line, "the gateway")])
        done, _ = await asyncio.wait({storing}, timeout=STORE_SECONDS)
        try:
            if done:
                return storing.result()[0]
            storing.cancel()
            raise SetupError(f"it took no row within {STORE_SECONDS:g} s")
        except Exception as problem:
            self._leave(problem)
            return None

    @staticmethod
    def _in(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    def _leave(self, problem: Exception) -> None:
        if not self.away:
            self.away = True
            said = str(problem) if isinstance(problem, SetupError) else trace(problem)
            log.warning("the database is away, what is recorded goes to %s until it is back: %s", spool.folder(), said)

    def _hold(self, line: bytes, problem: OSError) -> None:
        if sum(map(len, self.held)) + len(line) > HELD_BYTES:
            log.error("a record is lost: neither database nor spool takes it (%s), memory is full", problem.strerror)
            return
        log.error("%s cannot be written (%s), a record waits in memory", spool.folder(), problem.strerror)
        self.held.append(line)

    # -- back into the database ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the database, so that no customer waits for its migration."""
        try:
            await asyncio.wait_for(self._in(self.draining, spool.put, []), OPEN_SECONDS)
        except Exception as problem:
            self._leave(problem)

    async def watch(self) -> None:
        """Drain the spool whenever the database takes it, for as long as the gateway runs."""
        while True:
            await self.drain()
            await asyncio.sleep(POLL_SECONDS)

    async def drain(self) -> None:
        """Store what waits in memory and in the spool, if the database takes it."""
        try:
            files = await self._in(self.draining, spool.files, spool.folder())
            held = list(self.held)
            if not (self.away or held or files):
                return
            # With nothing in memory too: whether a transaction begins says whether the database is back.
            await self._in(self.draining, spool.put, [spool.read(line, "the gateway") for line in held])
            for _ in held:
                self.held.popleft()
            for file in files:
                new = await self._in(self.draining, spool.drain, file)
                log.warning("%s is in the database, %d of its records were new", file, new)
            self.away = False
        except Exception as problem:
            self._leave(problem)

    async def close(self) -> None:
        """Wait for what is being recorded, and try once more to store what is not."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while (self.open or self.tasks) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drain(), STORE_SECONDS)
        for line in self.held:
            try:
                spool.append(line)
            except OSError as problem:
                log.error("a record is lost: neither database nor spool takes it (%s)", problem.strerror)
        for threads in (self.storing, self.spooling, self.draining):
            threads.shutdown(wait=False, cancel_futures=True)
