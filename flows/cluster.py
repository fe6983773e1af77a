"""The Ray cluster of FLYWHEEL_RAY: calls of a stage at once on its nodes, by Prefect's Ray task runner.

A call whose node or process dies is made again by Ray on another; what a call has made it finds again, and what it had
begun it goes on with (`infra/once.py`). Each takes FLYWHEEL_THREADS cores (1 if that is not set) and, where the cluster
has any, a GPU. The settings of this process travel with the calls, secrets apart, which Ray would show on its pages.
"""

import logging
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any
from urllib.parse import urlsplit

from prefect import Task
from prefect.settings import get_current_settings
from prefect.utilities.callables import get_call_parameters
from pydantic import SecretStr

from flows.stage import Bar
from infra.settings import Settings, SetupError, settings

PASSED = ("FLYWHEEL_", "PREFECT_", "HF_HUB_", "TRANSFORMERS_", "TOKENIZERS_", "DO_NOT_TRACK", "MLFLOW_DISABLE_")
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
        futures = [runner.submit(task, get_call_parameters(task.fn, args, {})) for args in calls]
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
            "address": address, "runtime_env": {"env_vars": environment()}, "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
    )  # fmt: skip
    try:
        stack.enter_context(runner)
    except (OSError, RuntimeError, ValueError) as problem:  # Ray's ConnectionError, and how it says "another version"
        raise SetupError(
            f"FLYWHEEL_RAY {address!r} cannot be used ({problem}); `ray start` makes a cluster, and host:6379 is for "
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


def environment() -> dict[str, str]:
    """The variables of this process that a stage must find wherever it runs."""
    kinds = Settings.model_fields.items()
    secret = {f"FLYWHEEL_{name.upper()}" for name, field in kinds if field.annotation is SecretStr}
    secret |= {"FLYWHEEL_RAY", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"}  # Prefect's travel in the call itself
    found = {name: value for name, value in os.environ.items() if name.startswith(PASSED) and name not in secret}
    return {**found, "FLYWHEEL_HOME": str(settings().home), "FLYWHEEL_THREADS": str(settings().threads or 1)}


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
