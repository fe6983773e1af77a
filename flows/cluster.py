"""The Ray cluster of FLYWHEEL_RAY: calls of a stage at once on its nodes, by Prefect's Ray task runner.

A call whose node or process dies is made again by Ray on another; what a call has made it finds again, and what it had
begun it goes on with (`infra/once.py`). Each takes FLYWHEEL_THREADS cores (1 if that is not set) and, where the cluster
has any, a GPU.

The settings of this process travel within the calls. Ray's runtime environment would be the usual way, but its pages,
its state API and its logs show it, and many a setting holds a password: all URLs may. They do not show what a function
is called with. A setup hook would run before anything is imported, but none can be had through `ray://`; a file in the
home would outlive a run that was killed. So only what libraries must know when they are imported goes into the runtime
environment, by a list of names that hold no secret.
"""

import copy
import functools
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any
from urllib.parse import urlsplit

from prefect import Task
from prefect.settings import get_current_settings
from prefect.utilities.callables import get_call_parameters

from flows.stage import Bar
from infra.settings import Settings, SetupError, from_files, settings

GIVEN = ("FLYWHEEL_", "PREFECT_")  # beginnings of variables that the calls take along, ...
SHOWN = (  # ... and of those that Ray may show
    "PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_LOGGING_", "PREFECT_SERVER_ANALYTICS_ENABLED", "HF_HUB_",
    "TRANSFORMERS_", "TOKENIZERS_", "DO_NOT_TRACK", "MLFLOW_DISABLE_",
)  # fmt: skip
HERE = ("127.0.0.1", "localhost", "::1")


def fan_out(task: "Task[..., dict[str, Any]]", calls: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What each call returns, in their order. Where some fail, all others are finished before the first is raised.

    Raises:
        SetupError: There is no such cluster, or something that is not on this machine alone is missing for it.
    """
    require()
    from prefect_ray.context import remote_options

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray tells of dead nodes on standard output, where results go
        runner = connected(stack)
        stack.enter_context(remote_options(**share()))
        carried = carrying(task, given())
        futures = [runner.submit(carried, get_call_parameters(task.fn, args, {})) for args in calls]
        bar = stack.enter_context(Bar())
        for done, future in enumerate(futures, 1):
            future.wait()
            bar(done, len(futures), f"{task.name} on Ray")
        return [future.result() for future in futures]


def require() -> None:
    """Nothing, where FLYWHEEL_RAY is not set or all is there that can be told without the cluster.

    Raises:
        SetupError: The package, or a Prefect server for the nodes to report to; or torchrun would count cores, too.
    """
    if not settings().ray:
        return
    try:
        import prefect_ray  # noqa: F401
    except ImportError as problem:
        raise SetupError(
            f"FLYWHEEL_RAY {settings().ray!r} needs the package prefect-ray; pip install 'flywheel[ray]'"
        ) from problem
    if not get_current_settings().api.url:
        raise SetupError(
            f"FLYWHEEL_RAY {settings().ray!r} needs a Prefect server, which its nodes report to; "
            "start `flywheel up`, or set PREFECT_API_URL"
        )
    if settings().torchrun:
        raise SetupError(
            f"FLYWHEEL_TORCHRUN {settings().torchrun!r} starts processes that Ray does not know of; "
            "unset it, or FLYWHEEL_RAY"
        )


def connected(stack: ExitStack) -> Any:
    """A task runner of the cluster, until the stack is closed.

    Raises:
        SetupError: No cluster answers, or it has other machines, which would not find what is on this one.
    """
    import ray
    from prefect_ray import RayTaskRunner

    address = settings().ray
    runner: Any = RayTaskRunner(
        init_kwargs={
            "address": address, "runtime_env": {"env_vars": environment(SHOWN)}, "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
    )  # fmt: skip
    try:
        stack.enter_context(runner)
    except (OSError, RuntimeError, ValueError) as problem:  # Ray's ConnectionError, and how it says "another version"
        said = (str(problem).strip() or type(problem).__name__).splitlines()[-1]  # before it there may be a traceback
        raise SetupError(
            f"FLYWHEEL_RAY {address!r} cannot be used ({said}); `ray start` makes a cluster, and host:6379 is for "
            "its own machines, ray://host:10001 for others"
        ) from problem
    others = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]} - {platform.node()}
    if others:
        of_others(", ".join(sorted(others)))
    return runner


def of_others(names: str) -> None:
    """Nothing, where database and Prefect server can be reached from other machines.

    Raises:
        SetupError: One of them is on this machine alone.
    """
    if settings().database_url.startswith("sqlite"):
        raise SetupError(
            f"FLYWHEEL_RAY has other machines ({names}), and SQLite is for one; "
            "set FLYWHEEL_DATABASE to PostgreSQL, and FLYWHEEL_HOME to a folder that they share"
        )
    if urlsplit(server := str(get_current_settings().api.url)).hostname in HERE:
        raise SetupError(
            f"FLYWHEEL_RAY has other machines ({names}), which do not reach a Prefect server at {server}; "
            "set PREFECT_API_URL to an address of theirs (FLYWHEEL_HOST says what `flywheel up` binds to)"
        )


def carrying(task: "Task[..., dict[str, Any]]", variables: Mapping[str, str]) -> "Task[..., dict[str, Any]]":
    """The task, which first puts some variables into the environment of the process that runs it."""
    function = task.fn

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> dict[str, Any]:
        os.environ.update(variables)
        settings.cache_clear()
        return function(*args, **options)

    carried = copy.copy(task)  # its keys and source are those of the task: a result that is kept is found
    carried.fn = run
    return carried


def given() -> dict[str, str]:
    """The settings, Prefect's among them, that a stage must find wherever it runs."""
    found = environment(GIVEN)
    found.pop("FLYWHEEL_RAY", None)
    for name, value in from_files(Settings.model_fields).items():  # which other machines do not have
        del found[f"FLYWHEEL_{name.upper()}_FILE"]
        found[f"FLYWHEEL_{name.upper()}"] = value
    return {**found, "FLYWHEEL_HOME": str(settings().home), "FLYWHEEL_THREADS": str(settings().threads or 1)}


def environment(beginnings: tuple[str, ...]) -> dict[str, str]:
    """The variables of this process whose names begin so."""
    return {name: value for name, value in os.environ.items() if name.startswith(beginnings)}


def share() -> dict[str, int]:
    """What a call takes of a node.

    Raises:
        SetupError: No node has it: Ray would wait for one.
    """
    import ray

    cores = settings().threads or 1
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < cores:
        raise SetupError(f"FLYWHEEL_THREADS {cores} is more cores than a node of Ray has (at most {most:.0f})")
    return {"num_cpus": cores, "num_gpus": 1 if ray.cluster_resources().get("GPU") else 0}
