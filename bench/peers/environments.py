"""The peers' virtual environments: what each holds, and how it is made.

    python bench/peers/environments.py [peer ...]    creates those that are not there (all peers, if none is named)

They live under $FLYWHEEL_BENCH_HOME (`.bench/` in the repository's root), one for each peer, because the peers'
requirements exclude each other and our own. torch is installed first and alone, by its exact version: an open range
asked for by a peer would bring a CUDA build of several GB. llama.cpp is compiled from its source distribution, which
takes a C++ compiler, CMake and some 10 minutes on two cores.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"

# Exact versions that ran together on Python 3.11, Linux, no accelerator.
REQUIREMENTS: dict[str, list[str]] = {
    "llmcompressor": ["llmcompressor==0.14.0.1", "transformers==5.17.0", "compressed-tensors==0.19.0"],
    "gptqmodel": ["gptqmodel==7.6.0", "transformers==5.24.0", "numpy==2.2.6"],
    "autoround": ["auto-round==0.16.1", "transformers==5.23.0"],
    "torchao": ["torchao==0.18.0", "transformers==5.23.0"],
    "quanto": ["optimum-quanto==0.2.7", "transformers==5.23.0", "accelerate==1.15.0"],
    "llamacpp": ["llama-cpp-python==0.3.36", "gguf==0.19.0", "transformers==5.23.0"],
}
COMMON = ["safetensors==0.8.0"]
# For AVX2 and no more: a kernel need not lend a process the AMX tiles that its CPU reports.
BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}


def home() -> Path:
    """The folder of all environments."""
    given = os.environ.get("FLYWHEEL_BENCH_HOME")
    return Path(given) if given else Path(__file__).resolve().parents[2] / ".bench"


def python_of(peer: str) -> Path:
    """The peer's own interpreter; whether it is there is for the caller to see."""
    if peer not in REQUIREMENTS:
        raise KeyError(f"No peer {peer!r}; there are {', '.join(REQUIREMENTS)}")
    return home() / peer / "bin" / "python"


def script_of(peer: str) -> Path:
    """The script that runs one of the peer's jobs."""
    return Path(__file__).resolve().parent / f"{peer}_peer.py"


def create(peer: str) -> None:
    """Makes the environment of `peer` unless it was made to its end before."""
    python = python_of(peer)
    made = home() / peer / "requirements.txt"  # written last
    wanted = "\n".join([TORCH, *COMMON, *REQUIREMENTS[peer]]) + "\n"
    if made.exists() and made.read_text() == wanted:
        return
    if not python.exists():
        venv.create(home() / peer, with_pip=True)
    for packages in ([TORCH], [TORCH, *COMMON, *REQUIREMENTS[peer]]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], env=os.environ | BUILD, check=True)
    made.write_text(wanted)


if __name__ == "__main__":
    for name in sys.argv[1:] or REQUIREMENTS:
        create(name)
        print(f"{name:<14} {python_of(name)}")
