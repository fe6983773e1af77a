"""One turn of a workload at a time, and none for longer than it may take.

A turn holds a lock file in the home (`infra/once.py`): the kernel lets go of it when its process ends, however it ends,
so that a crashed run keeps nobody waiting, and it holds for all ways to start one: a schedule, a button, an event, the
command line. One more may wait; it will see all traffic that has come by then, so a third is not needed and says so.
Prefect's own concurrency limits were rejected: a limit is of a deployment or of a name made beforehand, not of a
workload; a killed run's slot comes back after a lease of minutes; and a wheel from the command line would not count.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed, Running

from flows.stage import OverBudget
from infra.once import alone, holder
from infra.settings import SetupError, settings

LOG = logging.getLogger("flywheel")
AGAIN = 10.0  # seconds until who went on nevertheless is told again that its time is over
STUCK = 60.0  # seconds after which a process that does not hear it is ended


class Busy(SetupError):
    """A turn of the workload runs and another waits already: this one is skipped."""


@contextmanager
def turn(workload: str, hours: float) -> Iterator[None]:
    """Be the only turn of a workload, for so many hours at most.

    Raises:
        Busy: One runs, and one waits.
        OverBudget: The time is over.
    """
    folder = settings().home / "turns"
    name = quote(workload, safe="")
    running, waiting = folder / f"{name}.lock", folder / f"{name}.next.lock"
    place, waited = ExitStack(), []  # in the queue, which has one

    def wait(by: str) -> None:
        place.enter_context(alone(waiting, skip))()
        waited.append(by)
        said = f"a turn of {workload!r} is under way by {by}: waiting for it"
        LOG.warning(said)
        _tell(flow_run.id, Running(name="Waiting", message=said))

    def skip(by: str) -> None:
        raise Busy(f"skipped: a turn of {workload!r} is under way by {holder(running)}, and the next waits: {by}")

    with place, alone(running, wait) as enter:
        enter()
        if waited:
            _tell(flow_run.id, Running())
            place.close()
        with within(hours, f"the turn of {workload!r} took over hours={hours:g} and was stopped; run it again, and it "
                    "goes on where it was, or give it more"):  # fmt: skip
            yield


@contextmanager
def within(hours: float, said: str) -> Iterator[None]:
    """Raise OverBudget, which says so, in the main thread once the time is over; end the process if that is not heard.

    A stage that computes in C without an end, or in a library that catches everything, hears nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be interrupted
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise OverBudget(said)

    stuck = threading.Timer(3600 * hours + STUCK, _end, (flow_run.id, said))
    stuck.daemon = True
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 3600 * hours, AGAIN)
    stuck.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        stuck.cancel()
        signal.signal(signal.SIGALRM, before)


def _end(run: str | None, said: str) -> None:
    LOG.error("%s: it did not hear that its time was over", said)
    _tell(run, Failed(name="TimedOut", message=said))
    time.sleep(3)  # Prefect sends the log in batches
    os._exit(1)


def _tell(run: str | None, state: State[Any]) -> None:
    """Show a state on the run's page."""
    if run is None:
        return
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)
