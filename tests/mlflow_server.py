"""A real MLflow server, whose files only it can reach."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen


def free_port() -> int:
    """A port that nobody listens on, and that no connection is given while a server takes its time to begin.

    Below Linux's range for outgoing connections (from 32768): a number out of that is gone by chance, once in a while.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.SystemRandom().randrange(20_000, 32_000)))
            return port


@contextmanager
def mlflow_server(folder: Path, **environment: str) -> Iterator[str]:
    """Its address. `environment` is added to this process's."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    given = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    with started(command, folder / "log", f"http://127.0.0.1:{port}/health", given):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(
    command: list[str], log: Path, health: str, environment: dict[str, str], cwd: Path | None = None
) -> Iterator[None]:
    """A server in a process of its own, from when it answers at `health`; it and its children end with the context."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, stdout=written, stderr=written, env={**os.environ, **environment}, cwd=cwd, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                with urlopen(health, timeout=2):
                    break
            except OSError:
                time.sleep(0.25)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
