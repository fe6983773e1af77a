"""The GPU, where there is one: whether the driver and this build of torch can use it."""

import shutil
import subprocess
from collections.abc import Iterator

from tasks.doctor.finding import Level

QUERY = ["--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader,nounits"]


def check() -> Iterator[tuple[Level, str, str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield "ok", "none: training and serving run on the CPU", ""
        return
    asked = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=20)
    if asked.returncode:
        said = (asked.stdout + asked.stderr).strip().splitlines()[:1]
        yield (
            "wrong",
            f"nvidia-smi fails: {said[0] if said else asked.returncode}",
            "reboot, or install the driver again",
        )
        return
    import torch

    for card in asked.stdout.strip().splitlines():
        name, driver, total, used = (part.strip() for part in card.split(","))
        yield "ok", f"{name}, driver {driver}, {used} of {total} MiB used", ""
    if torch.version.cuda is None:
        yield (
            "warning",
            f"torch {torch.__version__} is built without CUDA: the GPU is not used",
            "pip install --force-reinstall torch",
        )
    elif not torch.cuda.is_available():
        yield (
            "wrong",
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: the driver is too old",
            "install a newer driver",
        )
    else:
        torch.zeros(1, device="cuda").add_(1).item()
        yield "ok", f"torch {torch.__version__} (CUDA {torch.version.cuda}) computes on it", ""
