"""One job of one peer: read what is asked, measure the quantization, write what came of it.

A peer is a library we compare with. Their requirements contradict each other, so that each runs in a virtual
environment of its own (environments.py) and speaks with the benchmark through one folder, JOB:

    python bench/peers/<peer>_peer.py JOB
    JOB/job.json             what to do: see `Job`
    JOB/result.json          what it cost: see `write`
    JOB/logits.safetensors   `logits` float32 [n, t, V]: the peer's own quantized model on the evaluation ids
    JOB/log.txt              what the library printed; after a failure the last line on standard error says why

This module runs in every environment: the standard library, torch and safetensors are all it may import.
"""

import gc
import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

BATCH = 8  # sequences a forward pass
HIDDEN = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
WIDTHS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16}  # everything else has 8 bits


@dataclass(frozen=True)
class Job:
    """What job.json asks for; `extras` holds the method's own keys. Its paths are absolute."""

    folder: Path
    model: str  # a Hugging Face folder, float32
    method: str
    calibration: Path  # safetensors: input_ids int64 [n, t], no padding
    evaluation: Path
    bits: int | None = None
    group_size: int | None = None  # None: one scale for each output channel
    symmetric: bool = True
    threads: int = 2
    extras: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job in `folder`; keys without a field of that name become extras."""
        asked = json.loads((folder / "job.json").read_text())
        known = {key: asked.pop(key) for key in list(asked) if key in cls.__dataclass_fields__}
        known |= {key: Path(known[key]) for key in ("calibration", "evaluation")}
        return cls(folder=folder, extras=asked, **known)

    @property
    def saved(self) -> Path:
        """Where the peer saves its own format."""
        return self.folder / "saved"

    def ids(self, part: str) -> torch.Tensor:
        """int64 [n, t] of "calibration" or "evaluation"."""
        return load_file(getattr(self, part))["input_ids"]


@dataclass
class Cost:
    """What the block under `measured` cost, filled in at its end."""

    base_mb: float = 0.0
    peak_mb: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads: what a busy machine distorts less


@contextmanager
def measured() -> Iterator[Cost]:
    """Times the block; its peak of resident memory is counted from the block's start where the kernel can do that.

    getrusage alone would not do: a child inherits the peak of the process that started it.
    """
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    cost = Cost(base_mb=_resident_mb("VmRSS"))
    started, worked = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    cost.peak_mb = _resident_mb("VmHWM")


def _resident_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MB; getrusage where the kernel has no such file."""
    with suppress(OSError):
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()  # not inference_mode: some peers' tensors cannot be made under it
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """float32 [n, t, V] of a Hugging Face causal model on ids [n, t]."""
    model.eval()
    return torch.cat([model(input_ids=batch, use_cache=False).logits.float() for batch in ids.split(BATCH)])


def linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (N, K) of every linear layer that a peer is to quantize: all of them except the head."""
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    }


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a saved model."""
    return sorted(folder.glob("*.safetensors"))


def size(files: Iterable[Path]) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in files)


def stored_bits(files: Iterable[Path], shapes: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Bits per weight of the layers in `shapes`, counted on all that is stored under their names.

    `linear_bits` counts tensors as they are. `linear_bits_half` counts a float32 tensor as 16 bits: peers give scales
    the dtype of the model that they were handed, so a bfloat16 model would have had those.
    """
    exact = half = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 -- not a dict
                if _owner(key, shapes) and not key.endswith(".bias"):
                    part = opened.get_slice(key)
                    elements = torch.Size(part.get_shape()).numel()
                    width = WIDTHS.get(part.get_dtype(), 8)
                    exact += elements * width
                    half += elements * (16 if part.get_dtype() == "F32" else width)
    weights = sum(n * k for n, k in shapes.values())
    return {"linear_bits": exact / weights, "linear_bits_half": half / weights}


def _owner(key: str, names: Iterable[str]) -> str | None:
    """The layer that a tensor called `key` belongs to."""
    return next((name for name in names if key.startswith(f"{name}.")), None)


def write(
    job: Job,
    version: str,
    cost: Cost,
    output: torch.Tensor,
    linear_bits: float | None,
    bytes: int | None,
    reloaded: bool,
    **notes: Any,
) -> None:
    """Writes result.json and logits.safetensors; `notes` are further keys of the result."""
    result = {
        "peer": Path(sys.argv[0]).stem.removesuffix("_peer"),
        "version": version,
        "method": job.method,
        "seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
        "peak_mb": round(cost.peak_mb, 1),
        "base_mb": round(cost.base_mb, 1),
        "bytes": bytes,
        "linear_bits": linear_bits,
        "reloaded": reloaded,
    }
    save_file({"logits": output.float().contiguous()}, job.folder / "logits.safetensors")
    (job.folder / "result.json").write_text(json.dumps(result | notes, indent=1) + "\n")


def run(peer: Callable[[Job], None]) -> None:
    """Runs `peer` on the folder named on the command line; ends with 1 and one line on standard error if it fails."""
    folder = Path(sys.argv[1]).resolve()
    os.environ.update(HIDDEN)
    terminal = os.dup(2)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)  # where some libraries leave their scratch files
    try:
        job = Job.read(folder)
        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        peer(job)
    except Exception as error:  # whatever a library raises is the outcome of this job
        traceback.print_exc()
        line = " ".join(f"{Path(sys.argv[0]).stem}: {type(error).__name__}: {error}".split())
        os.write(terminal, f"{line[:600]}\n".encode())
        sys.stdout.flush()
        os._exit(1)  # some libraries leave threads behind that would not end
