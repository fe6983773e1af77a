"""compressed-tensors: a folder that `transformers` and vLLM load, with our integers, small floats and scales in it.

    config.json                the model's own, with `quantization_config`: schemes of layers, by name or all `Linear`
    model.safetensors          quantized layers as `compressed_layers.py` says, everything else in the model's floats
    model.safetensors.sha256   of that file, as `sha256sum -c` reads it; `read` does, too
    tokenizer files, generation_config.json

Layers of one scheme are one of the `config_groups`. Where all linears of the blocks have the same, its target is
`Linear`; else every group names its layers, and `format` says "mixed-precision" where the groups' own differ. `ignore`
names exactly the linears that are not quantized.

What transformers 5.23 (with compressed-tensors 0.20) computes is what our model does, on the CPU:

| scheme                                            | loads as | logits against ours                                |
|---------------------------------------------------|----------|----------------------------------------------------|
| integers of 2 to 8 bits, FP8, mixed, their heads  | float32  | bit-exact                                          |
| the same with int8 or FP8 inputs                  | float32  | bit-exact, of inputs [b, t, K]                     |
| KV cache, int8 or FP8                             | float32  | bit-exact with `quantized_cache`                   |
| integers, of a model in float16                   | float16  | bit-exact                                          |
| NVFP4, MXFP4                                      | bfloat16 | bit-exact with our model in bfloat16               |

Its loader has traits that decide what is written, and two that a user must step around:

* **It casts scales to the model's float type.** bfloat16 would cut 3 bits of an fp16 scale, and 16 of a float32 one. So
  `dtype` in config.json is float32 wherever a scale needs it, though a bfloat16 model's dense tensors are stored as the
  bfloat16 they are: loading widens them, and no value changes.
* **It dequantizes NVFP4 and MXFP4 to bfloat16,** and cannot multiply that with anything else. `dtype` is bfloat16 then,
  which such a level times its step survives (MX), or is rounded to once (NV), as our own forward pass in bfloat16 does.
  Integers mixed with them have their scales cut to 8 bits.
* **It wants embeddings dense.** A scheme may name one, but a head tied to it is then not found, and one with a padding
  token cannot be initialised. It is written as the floats it stands for: larger on disk, the same logits.
* **`dequantize=True` takes the first group's scheme for every layer,** so mixed files load wrong or not at all; it
  forgets activations and KV scales; and it multiplies integers in their scales' float16. Load without it.
* **Inputs without a batch dimension** [t, K] are rounded with one step for all tokens, in the place of one for each:
  pass batches of one.

vLLM 0.33 validates with compressed-tensors 0.17, which accepts all of these, and has its own kernels. It fuses q, k and
v, gate and up: these must share a scheme, which a mixed model's do not by themselves, and NVFP4's global scales are
taken to be equal. 3, 5 and 6 bits it runs by one kernel only (Humming), an int8 KV cache not at all.

Files are written to a temporary folder and moved in one by one, `config.json` last and an old one removed first:
until the last move the folder is no model. Other files in it are left alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.anatomy import blocks, head, tied
from quant.errors import QuantError
from quant.exports import files
from quant.exports.compressed_layers import PARTS, Scheme, arguments, scheme, tensors, weight
from quant.grid import FloatGrid
from quant.kv_cache import KVScales
from quant.linear import QuantEmbedding, QuantLinear, QuantWeight

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja",
)  # fmt: skip
WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHECKSUM, INDEX = f"{WEIGHTS}{files.SUFFIX}", f"{WEIGHTS}.index.json"


def write(model: nn.Module, path: Path, tokenizer_dir: Path) -> Path:
    """Write the folder; see `quant.export`."""
    config = quantization(model)
    with files.folder(path, "compressed_tensors", tokenizer_dir, last=CONFIG) as partial:
        save_file(model_tensors(model), partial / WEIGHTS, metadata={"format": "pt"})
        files.seal(partial / WEIGHTS)
        write_config(model, config, partial)
        for file in TOKENIZER_FILES:
            if (tokenizer_dir / file).exists():
                shutil.copyfile(tokenizer_dir / file, partial / file)
    return path


def read(folder: Path) -> dict[str, Tensor]:
    """The weights a runtime computes with, float32, under the names of the model before it was quantized.

    Raises QuantError where the file of the weights is damaged, or holds what `write` would not have written.
    """
    config = json.loads((folder / CONFIG).read_text()).get("quantization_config") or {}
    state: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for full, tensor in _load(folder).items():
        name, _, part = full.rpartition(".")
        if part in PARTS:
            layers.setdefault(name, {})[part] = tensor
        elif part not in ("k_scale", "v_scale"):
            state[full] = tensor.float()
    for name, parts in layers.items():
        dense = "weight_scale" not in parts and "weight" in parts
        state[f"{name}.weight"] = parts["weight"].float() if dense else weight(name, _scheme_of(name, config), parts)
    return state


def _load(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder, in one file or in shards, checked against their checksums where it has them."""
    index, names = folder / INDEX, [WEIGHTS]
    if index.exists() and not (folder / WEIGHTS).exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    found: dict[str, Tensor] = {}
    for file in (folder / name for name in names):
        files.check(file, folder / CHECKSUM)
        try:
            found |= load_file(file)
        except FileNotFoundError as problem:
            raise QuantError(f"there is no {file}; copy or export it again") from problem
        except SafetensorError as problem:
            raise QuantError(f"{file} is damaged ({problem}); copy or export it again") from problem
    return found


def quantization(model: nn.Module) -> dict[str, Any] | None:
    """The `quantization_config`, or None where nothing is quantized. Raises QuantError for what it cannot say."""
    layers, kv = _layers(model), _kv(model)
    if not layers and not kv:
        return None
    inside = tuple(f"{name}." for name, _ in blocks(model))
    groups: dict[str, tuple[Scheme, list[str]]] = {}
    for name, layer in layers.items():
        said = scheme(name, layer)
        groups.setdefault(json.dumps(said), (said, []))[1].append(name)
    uniform = sum(any(name.startswith(inside) for name in names) for _, names in groups.values()) == 1
    written = {}
    for i, (said, names) in enumerate(groups.values()):
        outside = [name for name in names if not name.startswith(inside)]
        targets = ["Linear", *outside] if uniform and len(outside) < len(names) else names
        written[f"group_{i}"] = {"targets": targets, **said}
    formats = {said["format"] for said, _ in groups.values()}
    skipped = _tied_head(model)
    return {
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "config_groups": written,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense",
        "ignore": [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or m is skipped],
        "kv_cache_scheme": arguments(next(iter(kv.values())).activations) if kv else None,
    }  # fmt: skip


def _scheme_of(name: str, config: dict[str, Any]) -> Scheme:
    """The scheme of a layer: of the group that names it, matches it, or has all linears, in this order."""
    targets = [(target, group) for group in config.get("config_groups", {}).values() for target in group["targets"]]
    groups = [group for target, group in targets if target == name]
    groups += [group for target, group in targets if target.startswith("re:") and re.match(target[3:], name)]
    groups += [group for target, group in targets if target == "Linear"]
    if not groups:
        raise QuantError(f"{name} is quantized, and no group in {CONFIG} has it; export the model again")
    return {**groups[0], "format": groups[0].get("format") or config["format"]}


def _tied_head(model: nn.Module) -> nn.Module | None:
    return head(model) if tied(model) else None


def _layers(model: nn.Module) -> dict[str, QuantLinear]:
    """What is written quantized: all but an embedding, and a head tied to it."""
    skipped = _tied_head(model)
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear) and m is not skipped}


def _kv(model: nn.Module) -> dict[str, KVScales]:
    """The scales of the cache, by the name of their attention module."""
    return {n.rpartition(".")[0]: m for n, m in model.named_modules() if isinstance(m, KVScales)}


def _float_type(model: nn.Module) -> torch.dtype:
    """The type a reader is to compute in. It casts scales to it, so it must hold them."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    layers = _layers(model).values()
    if any(isinstance(layer.grid, FloatGrid) and layer.grid.bits == 4 for layer in layers):
        return torch.bfloat16
    plain = not _kv(model) and not any(isinstance(module, QuantWeight) for module in model.modules())
    fp16 = all(layer.scale.dtype == torch.float16 and layer.activations is None for layer in layers)
    return dtype if plain or (dtype == torch.float16 and fp16 and not _kv(model)) else torch.float32


def model_tensors(model: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """What is stored of the modules whose names are chosen."""
    dtype, skipped, layers = _float_type(model), _tied_head(model), _layers(model)
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if module is skipped or not chosen(name):
            continue
        if name in layers:
            found |= {f"{name}.{part}": tensor for part, tensor in tensors(layers[name]).items()}
            if (bias := layers[name].bias) is not None:
                found[f"{name}.bias"] = bias
        elif isinstance(module, QuantEmbedding):
            found[f"{name}.weight"] = module.dequantize().to(dtype)
        else:
            found |= {f"{name}.{part}": p.detach() for part, p in module.named_parameters(recurse=False)}
    for name, held in _kv(model).items():
        if chosen(name):
            found |= {f"{name}.k_scale": held.k_scale, f"{name}.v_scale": held.v_scale}
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def write_config(model: Any, quantization: dict[str, Any] | None, folder: Path) -> None:
    model.config.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    dtype = str(_float_type(model)).removeprefix("torch.")
    config |= {"dtype": dtype, "architectures": [type(model).__name__]}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
