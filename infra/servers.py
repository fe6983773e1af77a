"""Processes that run beside us: started together, watched, stopped together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

from infra.settings import SetupError, settings


def require_free(host: str, port: int, setting: str) -> None:
    """Raise SetupError if something already listens on `port`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise SetupError(
                f"port {port} on {host} is in use; stop what listens there or set {setting} to another"
            ) from problem


class Servers:
    """Child processes in sessions of their own, each with a log file; leaving the context stops them all."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Servers":
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self.running.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + 10 + settings().drain_seconds  # the gateway lets its answers end
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})}, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, name: str, url: str, timeout: float = 120) -> None:
        """Until `url` answers.

        Raises:
            SetupError: The process ended, or `timeout` seconds passed; names its log.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.check(name)
            try:
                with urlopen(url, timeout=2):
                    return
            except (URLError, OSError):
                time.sleep(0.3)
        raise SetupError(f"{name} did not answer at {url} within {timeout:.0f} s; see {self.logs / name}.log")

    def check(self, name: str) -> None:
        code = self.running[name].poll()
        if code is not None:
            raise SetupError(f"{name} ended with exit code {code}; see {self.logs / name}.log")

    def watch(self) -> None:
        """Block until Ctrl-C or SIGTERM, or until one of the processes ends."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        # SIGINT too: a shell that starts us in the background has it ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        try:
            while True:
                for name in self.running:
                    self.check(name)
                time.sleep(0.5)
        except KeyboardInterrupt:
            return


def announce(addresses: dict[str, str]) -> Path:
    """Leave the addresses where later commands on this home find them."""
    path = settings().home / "up.json"
    path.with_suffix(".partial").write_text(json.dumps({"pid": os.getpid(), **addresses}))
    path.with_suffix(".partial").rename(path)
    return path


def gateway() -> str | None:
    """The address of the gateway: FLYWHEEL_GATEWAY, else that which runs on this home now; None if none does."""
    return settings().gateway.rstrip("/") or running().get("gateway")


def running() -> dict[str, str]:
    """The addresses of what `flywheel up` runs on this home now; empty if it does not."""
    try:
        up = json.loads((settings().home / "up.json").read_text())
        os.kill(up["pid"], 0)
    except (OSError, ValueError, KeyError):
        return {}
    return {name: str(address) for name, address in up.items() if name != "pid"}
