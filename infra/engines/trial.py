"""A first load in a process of its own, so that an engine which dies at it takes nobody along.

An engine in the gateway's process is native code: a file that it trips over, or too little memory, ends the process and
with it the version that served. (llama.cpp aborts on some files that are whole and parse.) So an artifact that this
home has not seen in a process yet is loaded in a child first; one that has passed is remembered by its hash and the
engines' versions. Torch raises where others abort, and a server elsewhere has a process of its own anyway.
"""

import hashlib
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.settings import SetupError, settings

NATIVE = {"model.gguf": "xllamacpp", "model.onnx": "onnxruntime"}
SECONDS = 900


def require_loadable(folder: Path, digest: str) -> None:
    """Raise SetupError where loading the artifact, whose files have this hash, would end the process.

    What the engine itself refuses is no matter here: loading says it again.
    """
    package = next((package for file, package in NATIVE.items() if (folder / file).exists()), None)
    if package is None or (settings().server and package == "xllamacpp"):
        return
    known = hashlib.sha256(f"{digest} {package} {_version(package)}".encode()).hexdigest()[:32]
    mark = settings().home / "serving" / "tried" / known
    if mark.exists():
        return
    # GGML would start a debugger to say where it died.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-m", "infra.engines.trial", str(folder)]
    try:
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise SetupError(
            f"the engine has not loaded {folder} within {SECONDS} s; give it a smaller artifact"
        ) from problem
    if done.returncode < 0:
        raise SetupError(
            f"the engine dies when it loads {folder} ({signal.Signals(-done.returncode).name}, in a process of its "
            "own); quantize the student again, or give it more memory"
        )
    if done.returncode == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main(folder: Path) -> None:
    """The child: load what is native of the artifact, and have it compute once."""
    if (folder / "model.gguf").exists():
        from infra.engines.llamacpp import SLOT_TOKENS, started

        started(folder / "model.gguf", SLOT_TOKENS, 0)
    else:
        from infra.engines.onnx import Onnx

        Onnx(folder).chat([{"messages": [{"role": "user", "content": "Hello"}]}])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except SetupError:
        os._exit(2)
    os._exit(0)  # without the engine's own end, which is not what is tried
