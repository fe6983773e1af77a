"""Models larger than memory: a Hugging Face folder quantized block by block, from one folder of shards into another.

    quantize_folder(Path("Llama-2-7b"), Path("Llama-2-7b-int4"), GPTQ(bits=4), batches)

The same tensors and the same `config.json`, bit for bit, as loading the folder, `quantize` and `export` give. Only what
is in memory at a time differs: embedding, head and final norm for good, and one block. The model is built without
tensors (parameters on torch's meta device, which knows shapes and types only; buffers are computed as usual). A method
walks it as ever; the walk tells the model's `store` when it comes to a block and when it is done with it:

    enter   read the block's tensors from the shards that have them, check that they are finite, put them in place
    leave   write what they became as a file, put the block back on the meta device

so a block is read once, a file written once, and peak memory does not grow with the number of blocks. What grows with
the data are the hidden states, one set of tokens x width (two for methods that know the unquantized model, as GPTQ
does), in the folder's float type. That is also the type blocks compute in: bfloat16 stays bfloat16, as the runtimes
have it; moments and solves are float32 and float64 as ever.

    target/model-00001-of-00033.safetensors ..    a block each, and the rest in the last
    target/model.safetensors.index.json           which tensor is where
    target/model.safetensors.sha256               of each file, as `sha256sum -c` reads it
    target/config.json, generation_config.json, tokenizer files

Everything is written to a temporary folder beside the target, which is renamed when it is complete.

Methods that need the whole model at once (`qat`, `mixed`, `best`, ..) cannot; nor can models whose checkpoint has other
tensors than they have (experts stored one by one and fused on loading). Tensors that the model has no place for are
left behind, as `from_pretrained` does.

Measured by `bench/shards.py`. Tested against `export(quantize(from_pretrained(..)))` bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant.anatomy import all_linears, blocks
from quant.errors import QuantError
from quant.exports.compressed_layers import scheme
from quant.exports.compressed_tensors import (
    CHECKSUM,
    CONFIG,
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    model_tensors,
    quantization,
    write_config,
)
from quant.exports.files import digest_of
from quant.linear import QuantLinear

if TYPE_CHECKING:
    from quant import Progress
    from quant.calibrate import Batch
    from quant.methods import Method

BLOCKWISE = ("rtn", "gptq", "awq", "autoround", "smoothquant", "fp8", "wanda", "sparsegpt")
"""The methods that look at one block at a time, and at none again."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def quantize_folder(
    source: Path, target: Path, method: Method, batches: Sequence[Batch] = (), *, progress: Progress | None = None
) -> Path:
    """Quantize the model in `source` into the new folder `target`, and return that.

    Args:
        source: a folder with `config.json` and `model.safetensors`, or shards of it with their index.
        target: where the compressed-tensors folder goes; must not exist.
        method: one of `BLOCKWISE`.
        batches: calibration data, as `quantize` takes.
        progress: called with (done, total, what).

    Raises:
        QuantError: the method is not blockwise, or compressed-tensors cannot hold its grid; the target exists; the
            source is quantized already, lacks a tensor, or has a file that is damaged: all before a tensor is read.
            A tensor holds NaN or Inf, or `method` refuses. Nothing is left at or beside `target` then.
    """
    if method.name not in BLOCKWISE:
        raise QuantError(f"{method.name} needs the whole model in memory; use quantize, or {', '.join(BLOCKWISE)}")
    if target.exists():
        raise QuantError(f"{target} exists; give another path, or remove it first")
    model, shards = _build(source)
    _check(model, method)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        store = FolderStore(model, shards, partial)
        model.__dict__["store"] = store  # where the walk looks for it
        method.apply(model, batches, progress or (lambda done, total, what: None))
        store.close()
        for file in TOKENIZER_FILES:
            if (source / file).exists():
                shutil.copyfile(source / file, partial / file)
        write_config(model, quantization(model), partial)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class Shards:
    """The tensors of a Hugging Face folder, by name. Only headers are read until a tensor is asked for.

    Raises QuantError where a file is missing or damaged, or lacks a tensor that the index says it has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: dict[str, str] = {}
        self.shape: dict[str, list[int]] = {}
        self.dtype: torch.dtype | None = None
        promised = self._index()
        for file in sorted(set(promised.values())) or [WEIGHTS]:
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    header = opened.get_slice(name)
                    self.file[name], self.shape[name] = file, header.get_shape()
                    self.dtype = self.dtype or FLOATS.get(header.get_dtype())
        for name, file in promised.items():
            if self.file.get(name) != file:
                raise QuantError(f"{folder / file} lacks {name}, which {INDEX} says it has; download both again")

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor, as `dtype`. Raises QuantError where it is not finite."""
        with self._open(self.file[name]) as opened:
            # A copy: what the reader gives out is a view of the file, and keeps what was read of it resident.
            tensor = opened.get_tensor(name).to(dtype, copy=True)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise QuantError(f"{name} in {self.folder / self.file[name]} holds NaN or Inf; repair or retrain the model")
        return tensor

    def _index(self) -> dict[str, str]:
        """Which file has which tensor; empty where all are in one file."""
        path = self.folder / INDEX
        if not path.exists():
            return {}
        try:
            return {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
        except (ValueError, KeyError, AttributeError, TypeError) as problem:
            raise QuantError(f"{path} is damaged ({problem!r}); download it again") from problem

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt") as opened:
                yield opened
        except FileNotFoundError as problem:
            raise QuantError(f"there is no {path}; download it again") from problem
        except SafetensorError as problem:
            raise QuantError(f"{path} is damaged ({problem}); download it again") from problem


class FolderStore:
    """A `calibrate.Store` that reads blocks from `shards` and writes them into `folder`.

    Everything outside the blocks is read at once, and stays. Raises QuantError where a tensor of the model is in no
    file, or has another shape there.
    """

    def __init__(self, model: nn.Module, shards: Shards, folder: Path) -> None:
        self.model, self.shards, self.folder = model, shards, folder
        self.blocks = [f"{name}." for name, _ in blocks(model)]
        self.keys = _keys(model, shards)
        self.where: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.size = 0
        self._fill(self._outside)

    def enter(self, index: int, block: nn.Module) -> None:
        """Read the tensors of the block."""
        self._fill(lambda name: name.startswith(self.blocks[index]))

    def leave(self, index: int, block: nn.Module) -> None:
        """Write the block's file and let its tensors go."""
        self._save(index, lambda name: f"{name}.".startswith(self.blocks[index]))
        block.to("meta")

    def close(self) -> None:
        """Write the last file, with what is outside the blocks, the index and the checksums."""
        self._save(len(self.blocks), self._outside)
        index = {"metadata": {"total_size": self.size}, "weight_map": dict(sorted(self.where.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        lines = [f"{digest}  {file}\n" for file, digest in self.digests.items()]
        (self.folder / CHECKSUM).write_text("".join(lines))

    def _outside(self, name: str) -> bool:
        return not f"{name}.".startswith(tuple(self.blocks))

    def _fill(self, chosen: Callable[[str], bool]) -> None:
        """Put the chosen tensors in the place of those on the meta device; what was one tensor is one again."""
        made: dict[str, Tensor] = {}
        for name, key in self.keys.items():
            if not chosen(name):
                continue
            owner, _, part = name.rpartition(".")
            module = self.model.get_submodule(owner)
            old = getattr(module, part)
            if key not in made:
                tensor = self.shards.read(key, old.dtype)
                made[key] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
            setattr(module, part, made[key])

    def _save(self, index: int, chosen: Callable[[str], bool]) -> None:
        """Write the tensors of the chosen modules."""
        held = model_tensors(self.model, chosen)
        file = f"model-{index + 1:05}-of-{len(self.blocks) + 1:05}.safetensors"
        save_file(held, self.folder / file, metadata={"format": "pt"})
        self.digests[file] = digest_of(self.folder / file)
        self.where |= dict.fromkeys(held, file)
        self.size += sum(tensor.nbytes for tensor in held.values())


def _build(source: Path) -> tuple[nn.Module, Shards]:
    """The model without its parameters, and where they are."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if not (source / CONFIG).exists():
        raise QuantError(f"there is no {source / CONFIG}; pass a folder of the Hugging Face kind")
    config = AutoConfig.from_pretrained(source)
    if getattr(config, "quantization_config", None):
        raise QuantError(f"{source} is quantized already (its config has quantization_config); start from the original")
    shards = Shards(source)
    with _without_parameters():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=config.dtype or shards.dtype)
    if (source / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model, shards


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Models made inside have parameters on the meta device, and buffers, which no file may hold, in memory."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _check(model: nn.Module, method: Method) -> None:
    """Refuse grids that do not fit the layers or the format, before hours are spent."""
    layers = dict(all_linears(model))
    inputs = getattr(method, "inputs", lambda: None)()
    for name, grid in method.grids(model).items():
        try:
            with torch.device("meta"):
                scheme(name, QuantLinear(layers[name].in_features, layers[name].out_features, grid, None, inputs))
        except QuantError as problem:
            raise QuantError(problem if str(problem).startswith(name) else f"{name}: {problem}") from problem


def _keys(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Under which name each tensor of the model is stored: its own, or that of one it is tied to."""
    state = model.state_dict(keep_vars=True)
    stored: dict[int, str] = {}
    for name, tensor in state.items():
        if name in shards.file:
            stored.setdefault(id(tensor), name)
    keys = {}
    for name, tensor in state.items():
        if id(tensor) in stored:
            keys[name] = stored[id(tensor)]
        elif tensor.is_meta:
            raise QuantError(f"{name} is in no file of {shards.folder}; download it again, or use another model")
    for name, key in keys.items():
        if shards.shape[key] != list(state[name].shape):
            shapes = f"{shards.shape[key]} in {shards.file[key]} and {list(state[name].shape)} in the model"
            raise QuantError(f"{name}: {shapes}; {CONFIG} belongs to another model")
    return keys
