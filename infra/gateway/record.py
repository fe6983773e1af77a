"""What the gateway records: every call and every feedback, on its way from what was said into the database.

Nobody waits for the database but feedback, which is told what became of it. A record is redacted, appended to the
journal (`journal.py`), and put into a queue; with that it is safe, and its customer is answered. Behind the queue one
writer stores what has come in a quarter of a second in one transaction. Where the queue is full, or the database takes
nothing, the journal alone has the record, which is `spooled` then, until the database takes it from there. Where the
journal cannot be written, records wait in the queue. Lost is one that finds no room in either, and the log says so.

A store that was given up and succeeds after all is no harm: the line in the journal has the same id.
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
from infra.database.session import to_disk
from infra.database.store import Fate
from infra.gateway import spool
from infra.gateway.errors import trace
from infra.gateway.journal import Journal, Segment
from infra.gateway.metrics import Metrics
from infra.privacy.redaction import redactor
from infra.settings import SetupError

log = logging.getLogger("flywheel.gateway")
STORE_SECONDS = 3.0  # SQLite alone would wait a minute for a lock, and whoever gives feedback with it
GATHER_SECONDS = 0.25
OPEN_SECONDS = 30.0
POLL_SECONDS = 1.0
CLOSE_SECONDS = 10.0
QUEUE_BYTES = 32 << 20
T = TypeVar("T")
Kept = Fate | Literal["spooled", "lost"]


@dataclass
class Call:
    """A request on its way, under the id that its answer and its record will have.

    The id is ours and not the teacher's: feedback names it, and there are servers that number their answers up to 999.

    Attributes:
        served_by: Who answers: teacher, champion or challenger; empty while nobody does.
        outcome: What came of it: ok, error, cut_off or refused; empty while it is on its way.
    """

    workload: str
    body: dict[str, Any]
    client: str | None = None
    conversation: str | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    served_by: str = ""
    outcome: str = ""

    def record(self, response: dict[str, Any]) -> dict[str, Any]:
        """The call and what came of it (an answer, what there is of one, or `{"error": ...}`)."""
        return {
            "id": self.id, "timestamp": self.at.isoformat(), "workload_id": self.workload,
            "conversation_id": self.conversation, "client_id": self.client,
            "latency_ms": round(1000 * (time.monotonic() - self.began), 3), "request": self.body, "response": response,
        }  # fmt: skip


@dataclass(slots=True)
class Waiting:
    """A record in the queue, where the journal has it (nowhere if it could not be written), and who waits for it."""

    line: bytes
    segment: Segment | None
    fate: "asyncio.Future[tuple[Kept, str]] | None"


class Recorder:
    """Keeps records; nothing that was given to it is lost, whether or not whoever gave it still waits.

    Attributes:
        open: Ids of the calls that are yet to be recorded; `close` waits for them.
        queue: What the database is to take next, of `queued` bytes.
        hand: What it is taking now.
        away: Whether the database took nothing when it was last asked.
        unwritable: Why the journal took nothing when it was last written; empty where it did.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.open: set[str] = set()
        self.queue: deque[Waiting] = deque()
        self.hand: list[Waiting] = []
        self.queued = 0
        self.away, self.unwritable = False, ""
        self.journal = Journal()
        self.some, self.hurry = asyncio.Event(), asyncio.Event()
        # Threads of their own: those that wait for a lock must not keep the engines from theirs.
        self.threads = ThreadPoolExecutor(4, "record")
        metrics.watch(self)

    def keep(self, record: dict[str, Any]) -> None:
        """Take a record; with that it outlives this process."""
        self._take(record, None)

    async def fate(self, record: dict[str, Any]) -> tuple[Kept, str]:
        """Take a record and wait for what becomes of it, and of one in quarantine why."""
        fate: asyncio.Future[tuple[Kept, str]] = asyncio.get_running_loop().create_future()
        self._take(record, fate)
        self.hurry.set()
        done, _ = await asyncio.wait({fate}, timeout=STORE_SECONDS + GATHER_SECONDS)
        return fate.result() if done else ("spooled", "")

    def _take(self, record: dict[str, Any], fate: "asyncio.Future[tuple[Kept, str]] | None") -> None:
        line = dumps(redactor().record(record, "client_id"))
        self.open.discard(record["id"])
        segment, full = self._journaled(line), self.queued + len(line) > QUEUE_BYTES
        one = Waiting(line, segment, fate)
        if segment and (full or self.away):
            self._spill(one, segment)
        elif full:
            self._end(one, "lost")
            log.error("a record is lost: neither database nor spool takes it (%s), memory is full", self.unwritable)
        else:
            self.queue.append(one)
            self.queued += len(line)
            if segment:
                segment.waiting += 1
            self.some.set()

    def _journaled(self, line: bytes) -> Segment | None:
        try:
            segment = self.journal.append(line)
            self.unwritable = ""
            return segment
        except OSError as problem:
            if not self.unwritable:
                log.error("%s cannot be written (%s), records wait in memory", spool.folder(), problem.strerror)
            self.unwritable = problem.strerror or type(problem).__name__
            return None

    def _spill(self, one: Waiting, segment: Segment) -> None:
        segment.spilled = True
        self._end(one, "spooled")

    def _end(self, one: Waiting, fate: Kept, reason: str = "") -> None:
        self.metrics.recorded(fate)
        if one.fate and not one.fate.done():
            one.fate.set_result((fate, reason))

    # -- into the database -----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the database, so that no feedback waits for its migration."""
        try:
            await asyncio.wait_for(self._in_thread(spool.put, []), OPEN_SECONDS)
        except Exception as problem:
            self._leave(problem)

    async def store(self) -> None:
        """Bring what is in the queue into the database, for as long as the gateway runs."""
        while True:
            await self.some.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hurry.wait(), GATHER_SECONDS)
            self.hurry.clear()
            if self.away:  # what is here is not in the journal, and waits for the database to be back
                await asyncio.sleep(POLL_SECONDS)
            elif self.queue:
                await self._commit()
            else:
                self.some.clear()

    async def _commit(self) -> None:
        self.hand = self._next()
        storing = self._in_thread(_put, [one.line for one in self.hand])
        try:
            done, _ = await asyncio.wait({storing}, timeout=STORE_SECONDS)
            if not done:
                storing.cancel()
                raise SetupError(f"it took no row within {STORE_SECONDS:g} s")
            fates = storing.result()
        except BaseException as problem:
            self.queue.extendleft(reversed(self.hand))
            self.hand = []
            if not isinstance(problem, Exception):
                raise
            self._leave(problem)
            return
        stored, self.hand = self.hand, []
        for one, (fate, reason) in zip(stored, fates, strict=True):
            self._out(one)
            self._end(one, fate, reason)

    def _next(self) -> list[Waiting]:
        batch, weight = [self.queue.popleft()], 0
        while self.queue and len(batch) < spool.BATCH_ROWS and weight < spool.BATCH_BYTES:
            batch.append(self.queue.popleft())
            weight += len(batch[-1].line)
        return batch

    def _out(self, one: Waiting) -> None:
        self.queued -= len(one.line)
        if one.segment:
            one.segment.waiting -= 1

    def _leave(self, problem: Exception) -> None:
        """The database is away: what the journal has need not wait in memory."""
        if not self.away:
            self.away = True
            said = str(problem) if isinstance(problem, SetupError) else trace(problem)
            log.warning("the database is away, what is recorded stays in %s until it is back: %s", spool.folder(), said)
        kept = deque(one for one in self.queue if not one.segment)
        for one in self.queue:
            if one.segment:
                self._out(one)
                self._spill(one, one.segment)
        self.queue = kept

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    # -- out of the journal ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Delete from the journal what the database has, and drain what it has not, for as long as the gateway runs."""
        while True:
            await self.settle()
            await asyncio.sleep(POLL_SECONDS)

    async def settle(self) -> None:
        """See the journal to the disk, or, what is more, its records into the database, and the spools of the dead."""
        try:
            await self._sync()
            if self.away:
                await self._in_thread(spool.put, [])  # whether a transaction begins says whether it is back
                self.away = False
            self.journal.turn()
            await self._forget_what_is_stored(self.journal.done())
            for file in await self._in_thread(spool.files, spool.folder()):
                new = await self._drained(file)
                log.warning("%s is in the database, %d of its records were new", file, new)
        except Exception as problem:
            self._leave(problem)

    async def _sync(self) -> None:
        try:
            if self.journal.now:
                await self._in_thread(self.journal.sync)
        except OSError as problem:
            log.error("%s cannot be seen to the disk (%s)", spool.folder(), problem.strerror)

    async def _forget_what_is_stored(self, done: list[Segment]) -> None:
        try:
            while done:
                segment = done[0]
                if segment.spilled:
                    new = await self._drained(segment.path)
                    log.warning("%s is in the database, %d of its records were new", segment.path, new)
                else:
                    await self._in_thread(_delete, segment)
                segment.file.close()
                done.pop(0)
        finally:
            self.journal.behind[:0] = done  # what the database did not take

    async def _drained(self, file: Any) -> int:
        fates = await self._in_thread(spool.drain, file)
        for fate in fates:
            self.metrics.recorded(fate)
        return fates.count("stored")

    # -- the end ---------------------------------------------------------------------------------------------------

    async def flush(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all that was taken is in the database, or in the spool for good."""
        deadline = time.monotonic() + seconds
        while (self.queue or self.hand) and not self.away and time.monotonic() < deadline:
            self.hurry.set()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Wait for what is being recorded, and try once more to store what is not."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self.flush(deadline - time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.settle(), STORE_SECONDS)
        for one in self.queue:
            if one.segment is None and self._journaled(one.line) is None:
                self._end(one, "lost")
                log.error("a record is lost: neither database nor spool takes it (%s)", self.unwritable)
        self.journal.close()
        self.threads.shutdown(wait=False, cancel_futures=True)


def _put(lines: list[bytes]) -> list[tuple[Fate, str]]:
    return spool.put([spool.read(line, "the gateway") for line in lines])


def _delete(segment: Segment) -> None:
    to_disk()
    with spool.locked(segment.file):
        segment.path.unlink(missing_ok=True)
