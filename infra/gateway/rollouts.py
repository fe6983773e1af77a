"""Versions on their way to serve, in this gateway: which of the two answers a call, and what is seen of it.

Shadow: the reference answers, and after it has, the student is asked the same; of what it says only the log hears. A
student that is still busy with earlier ones is not asked, so that it never holds up an answer. Canary: a conversation
is the student's or the reference's by a hash of its name, for as long as the rollout lasts, and a larger share only
adds to the student's. A student that fails, or takes too long, has been a failure for the statistics and not for the
customer: the reference is asked at once.

What came of each call goes through a queue into the database (`infra/rollout/state.py`), whose answer says where the
rollout stands now. Nobody waits for that but the next call: a breach that a call reveals is acted on before the next
one that comes a transaction later. A database that takes nothing leaves the rollout without its data: this gateway then
asks only the reference, and ends the rollout as soon as it can.

A conversation without an id is known by its client and how it opened, which all its turns repeat.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from infra import promotions, registry
from infra.database.records import digest
from infra.gateway.errors import Failed, Refused, trace
from infra.gateway.record import Call
from infra.gateway.serving import POLL_SECONDS, Champions, Served, ask, loaded
from infra.gateway.upstream import HUNG_UP
from infra.privacy.redaction import redactor
from infra.rollout import state
from infra.rollout.sequential import Arm
from infra.rollout.state import PROMOTED, ROLLED_BACK, Seen, Standing
from infra.settings import SetupError

log = logging.getLogger("flywheel.gateway")
THREADS = 8  # of a student's own: one that hangs must not keep the reference from its threads
SHADOWS = 2
CLOSE_SECONDS = 3.0
T = TypeVar("T")


@dataclass
class Trial:
    """A rollout and its student, loaded.

    Attributes:
        halted: Why the student is not asked any more, though the rollout has not been ended yet.
        shadows: Shadow answers on their way.
    """

    standing: Standing
    served: Served
    halted: str = ""
    shadows: int = 0
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "student"))

    @property
    def name(self) -> str:
        return registry.served_name(self.standing.workload, self.standing.version)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run in one of the student's threads, for as long as the spec allows.

        Raises:
            TimeoutError: It takes longer; it goes on, and its engine is not closed before it has ended.
        """
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self.served.release)

        running = self.threads.submit(function, *arguments)
        self.served.busy += 1
        running.add_done_callback(ended)
        waiting = asyncio.wrap_future(running)
        waiting.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody may be there to hear it
        done, _ = await asyncio.wait({waiting}, timeout=self.standing.spec.timeout)
        if not done:
            raise TimeoutError
        return waiting.result()

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class Ticket:
    """What is known of a call in a rollout before it has its answer.

    Attributes:
        read: The request as the student reads it.
        failed: Whether the arm's own model has failed.
    """

    trial: Trial
    step: int
    arm: Arm
    shadow: bool
    conversation: str
    read: dict[str, Any]
    failed: bool = False


class Rollouts:
    """What is under way, by workload."""

    def __init__(self, champions: Champions) -> None:
        self.champions = champions
        self.trials: dict[str, Trial] = {}
        self.tickets: dict[str, Ticket] = {}
        self.seen: asyncio.Queue[tuple[int, Seen]] = asyncio.Queue()
        self.shadows: set[asyncio.Task[None]] = set()

    # -- a call ----------------------------------------------------------------------------------------------------

    async def answer(self, call: Call) -> dict[str, Any] | None:
        """The student's answer where the call is its own; None where the reference is to be asked.

        Raises:
            Failed: The student broke, or took too long.
        """
        ticket = self._ticket(call)
        if ticket is None:
            return None
        self.tickets[call.id] = ticket
        if ticket.arm == "reference":
            return None
        try:
            return await self._ask(ticket, call)
        except Failed:
            ticket.failed = True
            raise
        except Refused:  # too long for it, or it abstains: as it would be when it serves
            return None

    def _ticket(self, call: Call) -> Ticket | None:
        trial = self.trials.get(call.workload)
        if trial is None or trial.halted or trial.standing.full:
            return None
        read = trial.served.engine.strip(call.body)
        if read is None:  # another job, which is none of the student's in any arm
            return None
        standing, conversation = trial.standing, conversation_of(call)
        weight = standing.spec.steps[standing.step].weight
        arm: Arm = "student" if share(standing.id, conversation) < weight else "reference"
        return Ticket(trial, standing.step, arm, not weight, conversation, read)

    async def _ask(self, ticket: Ticket, call: Call) -> dict[str, Any]:
        trial = ticket.trial
        return await ask(trial.served.engine, ticket.read, trial.name, call.id, trial.run)

    def failed(self, call: Call) -> None:
        """The champion has failed in a call, which the teacher answers."""
        if call.id in self.tickets:
            self.tickets[call.id].failed = True

    def done(self, call: Call, response: dict[str, Any] | None) -> None:
        """Note what came of a call: an answer, `{"error": ...}`, or None where nobody was asked."""
        ticket = self.tickets.pop(call.id, None)
        error = (response or {}).get("error")
        if ticket is None or response is None or (error and error.get("code") == HUNG_UP["code"]):
            return
        failed = ticket.failed or (ticket.arm == "reference" and error is not None)
        self._saw(ticket, call, ticket.arm, failed, 1000 * (time.monotonic() - call.began))
        trial = ticket.trial
        asked = ticket.shadow and not trial.halted and self.trials.get(call.workload) is trial
        if asked and trial.shadows < SHADOWS:
            trial.shadows += 1
            task = asyncio.create_task(self._shadow(ticket, call))
            self.shadows.add(task)
            task.add_done_callback(self.shadows.discard)

    async def _shadow(self, ticket: Ticket, call: Call) -> None:
        began, answer, failed = time.monotonic(), None, False
        try:
            said = await self._ask(ticket, call)
            answer = redactor().value({"message": said["choices"][0]["message"]})
        except Failed:
            failed = True
        except Refused:  # it abstains, or the request is too long for it: in service the reference answers, no failure
            pass
        finally:
            ticket.trial.shadows -= 1
        self._saw(ticket, call, "student", failed, 1000 * (time.monotonic() - began), answer)

    def _saw(
        self,
        ticket: Ticket,
        call: Call,
        arm: Arm,
        failed: bool,
        latency_ms: float,
        answer: dict[str, Any] | None = None,
    ) -> None:
        at = datetime.now(UTC)
        seen = Seen(call.id, ticket.step, arm, ticket.conversation, at, failed, latency_ms, answer)
        self.seen.put_nowait((ticket.trial.standing.id, seen))

    # -- into the database -----------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Bring what is seen into the database, for as long as the gateway runs."""
        while True:
            await self._bring([await self.seen.get(), *self._waiting()])

    def _waiting(self) -> Iterator[tuple[int, Seen]]:
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                yield self.seen.get_nowait()

    async def _bring(self, some: list[tuple[int, Seen]]) -> None:
        by_rollout: dict[int, list[Seen]] = {}
        for rollout_id, seen in some:
            by_rollout.setdefault(rollout_id, []).append(seen)
        for rollout_id, mine in by_rollout.items():
            try:
                await self._stand(await run_in_threadpool(state.observe, rollout_id, mine))
            except Exception as problem:
                said = str(problem) if isinstance(problem, SetupError) else type(problem).__name__
                log.warning("the student of rollout %d is not asked any more: %s", rollout_id, trace(problem))
                for trial in self.trials.values():
                    if trial.standing.id == rollout_id:
                        trial.halted = f"missing data: what was seen could not be stored ({said})"

    # -- where it stands -------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """The first look, so that a rollout goes on where it was with the first call."""
        try:
            await self.follow()
        except Exception as problem:
            log.warning("no rollout goes on: %s", problem if isinstance(problem, SetupError) else trace(problem))

    async def watch(self) -> None:
        """Follow the database for as long as the gateway runs; while it is away, only references answer."""
        while True:
            try:
                await self.follow()
            except Exception as problem:
                said = str(problem) if isinstance(problem, SetupError) else type(problem).__name__
                log.warning("rollouts are halted: %s", said)
                for trial in self.trials.values():
                    trial.halted = trial.halted or f"missing data: {said}"
            await asyncio.sleep(POLL_SECONDS)

    async def follow(self) -> None:
        """Take up what has begun, and see where everything stands by now."""
        for standing in await run_in_threadpool(state.running):
            known = self.trials.get(standing.workload)
            if known is None or known.standing.id != standing.id:
                if known:
                    await self._drop(known)
                await self._take_up(standing)
        for trial in list(self.trials.values()):
            mine = trial.standing
            if trial.halted:
                await self._stand(await run_in_threadpool(state.end, mine.id, ROLLED_BACK, trial.halted))
                continue
            wanted = self.champions.wanted
            serving = mine.reference if wanted is None else wanted.get(mine.workload, state.TEACHER)
            await self._stand(await run_in_threadpool(state.look, mine.id, serving))

    async def _take_up(self, standing: Standing) -> None:
        try:
            served = await loaded(standing.workload, standing.version)
            await run_in_threadpool(registry.challenge, standing.workload, standing.version)
        except Exception as problem:
            said = str(problem) if isinstance(problem, SetupError) else f"it fails to load ({type(problem).__name__})"
            log.error("%s: version %s is not tried: %s", standing.workload, standing.version, said)
            await run_in_threadpool(state.end, standing.id, ROLLED_BACK, f"it cannot be loaded: {said}")
            await self._unmark(standing)
            return
        self.trials[standing.workload] = Trial(standing, served)
        log.info("%s: version %s is under way, step %d", standing.workload, standing.version, standing.step)

    async def _stand(self, standing: Standing) -> None:
        trial = self.trials.get(standing.workload)
        if trial is None or trial.standing.id != standing.id:
            return
        trial.standing = standing
        if standing.full:  # several gateways may be here at once: each says the same to the registry
            try:
                held = f"the {len(standing.spec.steps)} steps of rollout {standing.id} have held"
                await run_in_threadpool(promotions.promote, standing.workload, standing.version, "rollout", held)
            except Exception as problem:  # all steps have held: tried again at the next look
                said = str(problem) if isinstance(problem, SetupError) else trace(problem)
                log.warning("%s: version %s cannot be promoted yet: %s", standing.workload, standing.version, said)
                return
            reason = f"version {standing.version} serves, {standing.reference} did before"
            standing = trial.standing = await run_in_threadpool(state.end, standing.id, PROMOTED, reason)
        if standing.status == state.RUNNING or self.trials.get(standing.workload) is not trial:
            return
        log.warning("%s: version %s is %s. %s", standing.workload, standing.version, standing.status, standing.reason)
        await self._drop(trial)
        await self._unmark(standing)

    async def _drop(self, trial: Trial) -> None:
        """Ask the student nothing more, unless it is the champion now: then it serves as it is, loaded."""
        standing = self.trials.pop(trial.standing.workload).standing
        trial.close()
        if standing.status == PROMOTED:
            await self.champions.follow(trial.served)
        else:
            trial.served.retire()

    async def _unmark(self, standing: Standing) -> None:
        try:
            await run_in_threadpool(registry.unchallenge, standing.workload, standing.version)
        except Exception as problem:  # the alias alone says nothing: the next rollout moves it
            log.warning("the alias challenger of %s stays: %s", standing.workload, type(problem).__name__)

    def models(self) -> dict[str, dict[str, Any]]:
        """What is under way, by workload, to be listed."""
        return {
            workload: {"version": s.version, "step": s.step, "steps": len(s.spec.steps), "halted": trial.halted}
            for workload, trial in self.trials.items()
            if (s := trial.standing)
        }

    async def close(self) -> None:
        for task in self.shadows:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._bring(list(self._waiting())), CLOSE_SECONDS)
        for trial in self.trials.values():
            trial.close()
            trial.served.retire()


def conversation_of(call: Call) -> str:
    """Digest of what is the same in all turns of a conversation."""
    if call.conversation:
        return digest([call.workload, call.conversation])[:32]
    opened = next((message["content"] for message in call.body["messages"] if message["role"] == "user"), None)
    return digest([call.workload, call.client, opened])[:32]


def share(rollout_id: int, conversation: str) -> float:
    """Where a conversation lies in [0, 1): below a step's weight it is the student's. Anew in each rollout."""
    drawn = hashlib.sha256(f"{rollout_id}:{conversation}".encode()).digest()
    return int.from_bytes(drawn[:6], "big") / (1 << 48)
