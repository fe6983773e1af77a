"""Peak memory of quantizing a model on disk: a 7B-shaped Llama, random, bfloat16, 13.5 GB in shards of about 1 GB.

    python bench/shards.py rtn [--layers 32] [--folder DIR]
    python bench/shards.py gptq --layers 4 --tokens 2048

The model is made layer by layer under `--folder` (a temporary folder by default), quantized in a process of its own,
and removed. Peak memory should not depend on `--layers`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

HIDDEN, MLP, VOCABULARY, HEADS = 4096, 11008, 32000, 32
SHARD = 10**9
LENGTH = 128


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("method", choices=("rtn", "gptq"))
    asked.add_argument("--layers", type=int, default=32)
    asked.add_argument("--tokens", type=int, default=2048, help=f"calibration tokens, in rows of {LENGTH}")
    asked.add_argument("--folder", type=Path, help="where to put the model and what becomes of it")
    asked.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    args = asked.parse_args()
    if args.job:
        job(args.method, args.folder, args.tokens)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = make(folder / "source", args.layers)
        started = time.monotonic()
        command = [sys.executable, __file__, args.method, "--job", "--folder", name, "--tokens", str(args.tokens)]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        written = sum(file.stat().st_size for file in (folder / "target").iterdir())
        print(
            f"{args.method}, {args.layers} layers: {size / 1e9:.2f} GB read, {written / 1e9:.2f} GB written, "
            f"peak {used.ru_maxrss * 1024 / 1e9:.2f} GB, {seconds:.0f} s ({used.ru_utime + used.ru_stime:.0f} s CPU)"
        )


def job(method: str, folder: Path, tokens: int) -> None:
    """Quantize `source` in `folder` to `target`."""
    from quant.methods import GPTQ, RTN
    from quant.shards import quantize_folder

    started = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        if sys.stderr.isatty() or done % 7 == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            print(f"{done}/{total} {what}, {time.monotonic() - started:.0f} s, peak {peak:.2f} GB", file=sys.stderr)

    ids = torch.randint(VOCABULARY, (tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]
    quantize_folder(
        folder / "source", folder / "target", RTN() if method == "rtn" else GPTQ(), batches, progress=progress
    )


def make(folder: Path, layers: int) -> int:
    """Write the model; returns its bytes."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": HIDDEN,
        "intermediate_size": MLP, "num_hidden_layers": layers, "num_attention_heads": HEADS, "vocab_size": VOCABULARY,
        "num_key_value_heads": HEADS, "tie_word_embeddings": False, "max_position_embeddings": 4096,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    held: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    total = files = 0

    def flush() -> None:
        nonlocal files
        files += 1
        file = f"model-{files:05}.safetensors"
        save_file(held, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(held, file))
        held.clear()

    for name, tensor in tensors(layers):
        if sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def tensors(layers: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model, one after another."""
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(std=0.02, generator=random)

    yield "model.embed_tokens.weight", matrix(VOCABULARY, HIDDEN)
    for i in range(layers):
        block = f"model.layers.{i}"
        for part in "qkvo":
            yield f"{block}.self_attn.{part}_proj.weight", matrix(HIDDEN, HIDDEN)
        yield f"{block}.mlp.gate_proj.weight", matrix(MLP, HIDDEN)
        yield f"{block}.mlp.up_proj.weight", matrix(MLP, HIDDEN)
        yield f"{block}.mlp.down_proj.weight", matrix(HIDDEN, MLP)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{norm}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    yield "lm_head.weight", matrix(VOCABULARY, HIDDEN)


if __name__ == "__main__":
    main()
