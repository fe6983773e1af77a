"""What runs the students: llama.cpp's and ONNX Runtime's libraries, torch, and the server of FLYWHEEL_SERVER."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from infra.settings import settings
from infra.tracking import shown
from tasks.doctor.finding import Level

SECONDS = 60
# In processes of their own: a library built for another CPU ends whoever loads it.
PROGRAMS = {
    "llama.cpp": ("xllamacpp", "import xllamacpp; xllamacpp.CommonParams()"),
    "ONNX Runtime": ("onnxruntime", "import onnxruntime; onnxruntime.get_available_providers()"),
    "torch": ("torch", "import torch; torch.zeros(1).item()"),
}
OPTIONAL = {"onnxruntime": "flywheel[onnx]"}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def check() -> Iterator[tuple[Level, str, str]]:
    for name, (package, code) in PROGRAMS.items():
        try:
            known = version(package)
        except PackageNotFoundError:
            extra = OPTIONAL.get(package)
            level: Level = "ok" if extra and not settings().encoder else "wrong"
            yield (
                level,
                f"{name} is not installed{': no classifiers are served' if extra else ''}",
                f"pip install '{extra or package}'",
            )
            continue
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            how = (
                f"signal {-done.returncode}" if done.returncode < 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
            )
            yield (
                "wrong",
                f"{name} {known} does not load: {how[:150]}",
                f"pip install --force-reinstall --no-deps {package}=={known}",
            )
        else:
            yield "ok", f"{name} {known} loads", ""
    yield "ok", f"CPU: {', '.join(flags()) or 'no extensions that matter'}", ""
    if settings().server:
        yield server()


def flags() -> list[str]:
    """Which of the CPU's extensions that the engines make use of are there."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [flag for flag in FLAGS if flag in words]


def server() -> tuple[Level, str, str]:
    """The server that runs the students, and the folder that it reads them from."""
    url, folder = settings().server.rstrip("/"), settings().server_folder.partition(":")[0]
    if not folder:
        return (
            "wrong",
            f"FLYWHEEL_SERVER is {shown(url)!r} and no folder is named",
            "export FLYWHEEL_SERVER_FOLDER=HERE:THERE",
        )
    key = settings().server_key.get_secret_value()
    try:
        said = httpx.get(f"{url}/models", timeout=5, headers={"authorization": f"Bearer {key}"} if key else {})
    except httpx.HTTPError as problem:
        return (
            "wrong",
            f"the server at {shown(url)} does not answer ({type(problem).__name__})",
            "check FLYWHEEL_SERVER",
        )
    if not said.is_success:
        return "wrong", f"the server at {shown(url)} answers {said.status_code} to /models", "check FLYWHEEL_SERVER_KEY"
    return "ok", f"the server at {shown(url)} answers", ""
