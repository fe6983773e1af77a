"""How every stage becomes a Prefect task: results kept as JSON, progress shown, the run's id passed on.

A stage is a plain function of `tasks/`, which knows nothing of Prefect. Each returns the row it made if that row is
already there, and Prefect keeps its result as well: a run that was killed goes on where it stopped, in a retry from
the UI and in a new run alike.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from tasks.teachers.tally import BudgetSpent


def stage(function: Callable[..., dict[str, Any]], retries: int = 0) -> Callable[..., dict[str, Any]]:
    """The function as a task of the same name; `retries` where trying again can help: with a network between.

    Outside a flow run (a single stage called from the command line) it is the plain function, and no server is needed.
    """

    def run(*args: Any, **options: Any) -> dict[str, Any]:
        with Bar() as bar:
            return function(*args, progress=bar, flow_run_id=flow_run.id, **options)

    functools.update_wrapper(run, function)
    # Prefect fills in a signature's defaults; it must not see the two arguments that are given here.
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    run.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    wrapped = task(
        name=function.__name__, retries=retries, retry_delay_seconds=2, retry_condition_fn=_may_help,
        persist_result=True, result_serializer="json",
    )(run)  # fmt: skip

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> dict[str, Any]:
        return (wrapped if in_flow_run() else run)(*args, **options)

    return call


def _may_help(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a stage is tried again: not where that would spend its budget once more."""
    return not isinstance(state.data, BudgetSpent)


def in_flow_run() -> bool:
    return FlowRunContext.get() is not None


class Bar:
    """A progress bar on standard error for what takes over two seconds; plain lines where nobody can watch it move."""

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
        if elapsed < 2 or (done < total and now - self.shown < (0.2 if self.moving else 15)):
            return
        self.shown = now
        filled = int(24 * done / max(1, total))
        left = elapsed / max(1, done) * (total - done)
        text = f"{what:<28} {'█' * filled}{'░' * (24 - filled)} {done}/{total} {elapsed:.0f}s, {left:.0f}s left"
        sys.stderr.write(f"\r{text}\033[K" if self.moving else f"{text}\n")
        sys.stderr.flush()

    def _end(self) -> None:
        if self.shown and self.moving:
            sys.stderr.write("\n")
