"""How every stage becomes a Prefect task: results kept as JSON, progress shown, the run's id passed on.

A stage is a plain function of `tasks/`, which knows nothing of Prefect. Each returns the row it made if that row is
already there, and Prefect keeps its result as well: a run that was killed goes on where it stopped, in a retry from
the UI and in a new run alike.
"""

import functools
import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from infra.settings import SetupError, settings
from tasks.teachers.tally import BudgetSpent

# What stages log goes to the run's page (PREFECT_LOGGING_EXTRA_LOGGERS names it); Prefect leaves the level to us.
logging.getLogger("flywheel").setLevel(logging.INFO)


class OverBudget(TimeoutError, SetupError):
    """A turn took longer than it may."""


class Stage:
    """A function as a Prefect task of the same name.

    Outside a flow run (a single stage called from the command line) it is the plain function, and no server is needed.
    """

    def __init__(self, function: Callable[..., dict[str, Any]], retries: int) -> None:
        def run(*args: Any, **options: Any) -> dict[str, Any]:
            with Bar() as bar:
                return function(*args, progress=bar, flow_run_id=flow_run.id, **options)

        functools.update_wrapper(run, function)
        # Prefect fills in a signature's defaults; it must not see the two arguments that are given here.
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        run.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        self._plain = run
        self._task = task(
            name=function.__name__, retries=retries, retry_delay_seconds=2, retry_condition_fn=_may_help,
            persist_result=True, result_serializer="json",
        )(run)  # fmt: skip

    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        return (self._task if in_flow_run() else self._plain)(*args, **options)

    def each(self, calls: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """What each call returns, in their order: at once on the cluster of FLYWHEEL_RAY, else one after the other."""
        if settings().ray:
            from flows.cluster import fan_out

            return fan_out(self._task, calls)
        return [self(*args) for args in calls]


def stage(function: Callable[..., dict[str, Any]], retries: int = 0) -> Stage:
    """The function as a stage; `retries` where trying again can help: with a network between."""
    return Stage(function, retries)


def _may_help(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a stage is tried again: not where that would spend its budget once more, of money or of time."""
    return not isinstance(state.data, BudgetSpent | OverBudget)


def in_flow_run() -> bool:
    return FlowRunContext.get() is not None


def aligned(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of the same keys as lines for the terminal, the keys above them; none for none."""
    if not rows:
        return []
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    shown = [{key: key for key in widths}, *rows]
    return ["  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip() for row in shown]


class Bar:
    """A progress bar on standard error for what takes over two seconds; plain lines where nobody can watch it move.

    Where nobody knows the total, which is 0 then, it counts.
    """

    def __init__(self) -> None:
        self.what = ""
        self.started = self.shown = 0.0
        self.moving = sys.stderr.isatty()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if what.split(",")[0] != self.what:
            self._end()
            self.what, self.started, self.shown = what.split(",")[0], now, 0.0
        elapsed = now - self.started
        if elapsed < 2 or (done < (total or math.inf) and now - self.shown < (0.2 if self.moving else 15)):
            return
        self.shown = now
        text = f"{what:<28} {done} {elapsed:.0f}s"
        if total:
            filled, left = int(24 * done / total), elapsed / max(1, done) * (total - done)
            text = f"{what:<28} {'█' * filled}{'░' * (24 - filled)} {done}/{total} {elapsed:.0f}s, {left:.0f}s left"
        sys.stderr.write(f"\r{text}\033[K" if self.moving else f"{text}\n")
        sys.stderr.flush()

    def _end(self) -> None:
        if self.shown and self.moving:
            sys.stderr.write("\n")
