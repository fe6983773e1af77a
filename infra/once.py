"""What is made once, however many processes and machines are asked for it: a lock file beside it, in the home.

The kernel holds the lock (flock): it is free the moment its holder dies, however it dies, so that what a killed run
left can be gone on with at once. NFS 4 does the same for a machine that is gone, after its lease (90 s by default).
A file with pid and heartbeat instead would have to compare the clocks of machines, and to guess whether a holder that
is silent is dead or only slow; a lock in PostgreSQL would not be there with SQLite, and would not be lost together
with the access to the files that it guards.
"""

import fcntl
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from infra.settings import SetupError

LOG = logging.getLogger("flywheel")
Made = TypeVar("Made")


def once(lock: Path, known: Callable[[], Made | None], make: Callable[[], Made]) -> Made:
    """What is `known`, else what `make` makes, while all others wait that are asked for the same.

    Args:
        lock: The lock file, which stays: it gets a line for each run that made, or began to make: its process, machine
            and time.
        known: None where there is nothing yet. Asked again once the lock is held.

    Raises:
        SetupError: The file system has no locks.
    """
    if (there := known()) is not None:
        return there

    def wait(by: str) -> None:
        LOG.warning("%s is being made by %s: waiting for it", lock.stem, by)

    with alone(lock, wait) as enter:
        if (there := known()) is not None:
            return there
        enter()
        return make()


@contextmanager
def alone(lock: Path, busy: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold a lock, waiting for it if another process does; what is yielded writes down that this one holds it now.

    Args:
        busy: Called with who holds it before it is waited for; what it raises ends the waiting.

    Raises:
        SetupError: The file system has no locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as held:  # closing it lets go
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy(holder(lock))
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as problem:
            raise SetupError(
                f"{lock.parent} is on a file system without locks ({problem.strerror}); "
                "set FLYWHEEL_HOME to one with them, such as a local disk or NFS 4"
            ) from problem

        def enter() -> None:
            held.write(f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
            held.flush()

        yield enter


def holder(lock: Path) -> str:
    """Who holds a lock, as far as that is written down already."""
    lines = lock.read_text().splitlines()
    return lines[-1] if lines else "another process"
