"""infra/compose.yaml run without containers: each service's own command and environment, as processes on loopback.

What a container would give a service is put in its place: a service's name becomes a port on 127.0.0.1, /run/secrets
and /tmp become folders, and FLYWHEEL_HOME one that no other service sees.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILE = ROOT / "infra" / "compose.yaml"
PATIENCE = 600.0


def compose(**variables: str) -> dict[str, Any]:
    """The file as Compose reads it: merged, `${NAME-default}` and `${NAME:-default}` filled in, `$$` one dollar."""

    def fill(found: re.Match[str]) -> str:
        name, colon, default = found.groups()
        return variables[name] if variables.get(name) or (name in variables and not colon) else default

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        if isinstance(value, str):
            return re.sub(r"\$\{(\w+)(:?)-([^}]*)\}", fill, value).replace("$$", "$")
        return value

    read: dict[str, Any] = filled(yaml.safe_load(FILE.read_text()))
    return read


def image_environment() -> dict[str, str]:
    """What the Dockerfile's last stage of ours sets."""
    stage = (ROOT / "infra" / "Dockerfile").read_text().split(" AS flywheel\n")[1].split("\nFROM ")[0]
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", stage, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())


class Topology:
    """The services of the file, each of them a process.

    Attributes:
        ports: The port on loopback of `service:port`.
    """

    def __init__(self, folder: Path, secrets: Path, ports: Mapping[str, int], **variables: str) -> None:
        self.folder, self.secrets, self.ports = folder, secrets, ports
        self.services = compose(**variables)["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, service: str) -> Path:
        """The folder in place of the volume at /var/lib/flywheel; of its own where a service has none."""
        volumes = [v.partition(":") for v in self.services[service].get("volumes", [])]
        return self.folder / next((name for name, _, at in volumes if at == "/var/lib/flywheel"), f"{service}/home")

    def address(self, service: str) -> str:
        (port,) = [port for name, port in self.ports.items() if name.startswith(f"{service}:")]
        return f"http://127.0.0.1:{port}"

    def environment(self, service: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "LANG") if name in os.environ}
        given = {**image_environment(), **(self.services[service].get("environment") or {})}
        told = {name: self.placed(service, str(value)) for name, value in given.items()}
        for name in told:
            if name.endswith("_PORT"):
                told[name] = str(self.ports[f"{service}:{told[name]}"])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # In the image Flywheel is installed; here it is this tree, whichever is installed.
        return {**kept, **told, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}

    def placed(self, service: str, value: str) -> str:
        """A value as it is without containers."""
        value = re.sub(r"^/tmp", str(self.folder / service / "tmp"), value)
        for name, port in self.ports.items():
            owner, inner = name.split(":")
            value = re.sub(rf"\b{name}\b", f"127.0.0.1:{port}", value)
            if owner == service:
                value = value.replace(f"127.0.0.1:{inner}", f"127.0.0.1:{port}")
        value = value.replace("0.0.0.0", "127.0.0.1").replace("/run/secrets", str(self.secrets))
        return re.sub(r"^/var/lib/flywheel", str(self.home(service)), value)

    def start(self, service: str) -> None:
        """Begin a service; its output goes to a log in its folder."""
        for needed in (self.home(service), self.folder / service / "tmp"):
            needed.mkdir(parents=True, exist_ok=True)
        command = [self.placed(service, part) for part in self.services[service]["command"]]
        with self.log(service).open("ab") as log:
            self.running[service] = subprocess.Popen(
                ["sh", str(ROOT / "infra" / "entrypoint.sh"), *command], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, cwd=ROOT, env=self.environment(service), start_new_session=True,
            )  # fmt: skip

    def log(self, service: str) -> Path:
        return self.folder / service / "log"

    def said(self, service: str) -> str:
        return f"{service}: {self.log(service).read_text()[-5000:]}"

    def completed(self, service: str) -> None:
        """A service that runs once, to its end."""
        self.start(service)
        assert self.running.pop(service).wait(PATIENCE) == 0, self.said(service)

    def healthy(self, *services: str) -> None:
        """Until each service's own health check passes."""
        deadline = time.monotonic() + PATIENCE
        for service in services:
            (kind, *command) = self.services[service]["healthcheck"]["test"]
            assert kind == "CMD"
            check = [self.placed(service, part) for part in command]
            while subprocess.run(check, env=self.environment(service), capture_output=True).returncode:
                assert self.running[service].poll() is None and time.monotonic() < deadline, self.said(service)
                time.sleep(0.5)

    @contextmanager
    def ends(self) -> Iterator["Topology"]:
        """All that was started ends with the context."""
        try:
            yield self
        finally:
            for process in self.running.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, SIGTERM)
            for process in self.running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, SIGKILL)
                process.wait()
