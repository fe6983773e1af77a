"""compressed-tensors: a folder that `transformers` and vLLM load, our integers in the layout `pack-quantized`.

    config.json         the model's own, with `quantization_config`: every `Linear` but those named in `ignore`
    model.safetensors   each quantized linear as weight_packed int32 [N, ceil(K * bits / 32)], weight_scale fp16 [N, G],
                        weight_shape int64 [2]; everything else in the model's float type
    tokenizer files, generation_config.json

The layout is `QuantLinear`'s own, so nothing is converted. Three things a reader does decide what else is written:

* **It casts scales to the model's float type.** In float32 and fp16 they stay what they are; bf16 would cut 3 of their
  bits. So a model in bf16 with quantized layers is written as float32, every value of it unchanged.
* **It keeps embeddings dense.** Schemes may name an embedding, but a head tied to it is then not found. An int8
  embedding is written as the floats it stands for, in the model's type: larger on disk, the same logits.
* **It wants integer zero points.** Ours are fp16 minima, which m = -s z for a whole z does not reach; and asymmetric
  files fail in transformers 5.23's default mode anyway (the packed zero points have an unexpected shape). Refused.

3 bits need compressed-tensors 0.19 to unpack, and so does any vLLM that reads them.

Files are written to a temporary folder and moved in one by one, `config.json` last and an old one removed first:
until the last move the folder is no model. Other files in it are left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.anatomy import head, tied
from quant.errors import QuantError
from quant.grid import IntGrid, Scales
from quant.linear import QuantEmbedding, QuantLinear, QuantWeight
from quant.pack import unpack_words

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(model: nn.Module, path: Path, tokenizer_dir: Path) -> Path:
    """Write the folder; see `quant.export`."""
    if path.exists() and not path.is_dir():
        raise QuantError(f"{path} is a file, and compressed_tensors writes a folder; give another path")
    if not (tokenizer_dir / "tokenizer.json").exists():
        raise QuantError(f"no tokenizer.json in {tokenizer_dir}; pass the folder the tokenizer was saved to")
    scheme = _scheme(model)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        dtype = _float_type(model)
        save_file(_tensors(model, dtype), partial / WEIGHTS, metadata={"format": "pt"})
        _write_config(model, dtype, scheme, partial)
        for file in TOKENIZER_FILES:
            if (tokenizer_dir / file).exists():
                shutil.copyfile(tokenizer_dir / file, partial / file)
        path.mkdir(exist_ok=True)
        (path / CONFIG).unlink(missing_ok=True)
        for done in sorted(partial.iterdir(), key=lambda f: f.name == CONFIG):
            os.replace(done, path / done.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def read(folder: Path) -> dict[str, Tensor]:
    """The weights a runtime computes with, float32, under the names of the model before it was quantized."""
    tensors = load_file(folder / WEIGHTS)
    scheme = json.loads((folder / CONFIG).read_text()).get("quantization_config")
    state = {}
    for full, tensor in tensors.items():
        name, suffix = full.rsplit(".", 1)
        if suffix == "weight_packed":
            assert scheme is not None
            bits = scheme["config_groups"]["group_0"]["weights"]["num_bits"]
            scale = tensors[f"{name}.weight_scale"]
            codes = unpack_words(tensor, bits, int(tensors[f"{name}.weight_shape"][1]))
            state[f"{name}.weight"] = IntGrid(bits, group_size=codes.shape[1] // scale.shape[1]).dequantize(
                codes, Scales(scale)
            )
        elif suffix not in ("weight_scale", "weight_shape"):
            state[full] = tensor.float()
    return state


def _scheme(model: nn.Module) -> dict[str, Any] | None:
    """The `quantization_config`, or None where nothing is quantized. Raises QuantError for a grid it cannot say."""
    tied_head = head(model) if tied(model) else None
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear) and m is not tied_head}
    if not layers:
        return None
    (grid,) = {m.grid for m in layers.values()}
    if not grid.symmetric:
        name = next(iter(layers))
        raise QuantError(f"{name}: compressed_tensors cannot hold fp16 minima; use symmetric=True, or export gguf")
    weights = {
        "num_bits": grid.bits, "type": "int", "symmetric": True, "dynamic": False, "group_size": grid.group_size,
        "strategy": "group" if grid.group_size else "channel",
    }  # fmt: skip
    unquantized = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or m is tied_head]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": unquantized, "kv_cache_scheme": None,
    }  # fmt: skip


def _float_type(model: nn.Module) -> torch.dtype:
    """The type of everything that is not an integer. A reader casts fp16 scales to it, so it must hold them."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    quantized = any(isinstance(m, QuantWeight) for m in model.modules())
    return torch.float32 if quantized and dtype is torch.bfloat16 else dtype


def _tensors(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    skipped = head(model) if tied(model) else None
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if module is skipped:
            continue
        if isinstance(module, QuantLinear):
            found[f"{name}.weight_packed"] = module.packed
            found[f"{name}.weight_scale"] = module.scale
            found[f"{name}.weight_shape"] = torch.tensor([module.rows, module.columns])
            if module.bias is not None:
                found[f"{name}.bias"] = module.bias.to(dtype)
        elif isinstance(module, QuantEmbedding):
            found[f"{name}.weight"] = module.dequantize().to(dtype)
        else:
            found |= {f"{name}.{part}": p.detach().to(dtype) for part, p in module.named_parameters(recurse=False)}
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def _write_config(model: Any, dtype: torch.dtype, scheme: dict[str, Any] | None, folder: Path) -> None:
    model.config.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    config |= {"dtype": str(dtype).removeprefix("torch."), "architectures": [type(model).__name__]}
    if scheme is not None:
        config["quantization_config"] = scheme
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
