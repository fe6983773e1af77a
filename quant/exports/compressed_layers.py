"""One layer in a compressed-tensors file: which of its layouts holds it, as which tensors, and how they are read back.

| grid                       | format               | tensors of a linear, N x K                                       |
|----------------------------|----------------------|------------------------------------------------------------------|
| int, symmetric             | pack-quantized       | weight_packed int32 [N, ceil(K bits / 32)], weight_scale fp16    |
|                            |                      | [N, G], weight_shape int64 [2]                                   |
| int 8 with one scale a row | int-quantized        | weight int8 [N, K], weight_scale fp16 [N, 1]                     |
| and int8 inputs            |                      |                                                                  |
| e4m3                       | float-quantized      | weight float8_e4m3fn [N, K], weight_scale float32 [N, G], or of  |
|                            |                      | blocks [N / 128, K / 128]                                        |
| e2m1 "nv"                  | nvfp4-pack-quantized | weight_packed uint8 [N, K / 2], the even column in the low       |
|                            |                      | nibble; weight_scale e4m3 [N, K / 16]; weight_global_scale       |
|                            |                      | float32 [1], by which the scales are divided                     |
| e2m1 "mx"                  | mxfp4-pack-quantized | weight_packed uint8 [N, K / 2]; weight_scale uint8 [N, K / 32],  |
|                            |                      | exponents + 127                                                  |
| any, with static inputs    |                      | input_scale float32 [1] as well                                  |

The codes and scales are `QuantLinear`'s own; nothing is rounded on the way. The packed layouts are its int32 words as
they are (a byte of e2m1 is a byte of them).

* **A scale for the whole matrix is written as one a row,** all the same: vLLM fuses q, k and v, and re-quantizes a
  fused matrix to the largest of its tensor scales, but keeps scales of rows. int4 with one scale has no kernel at all.
* **Integer zero points are not what we have.** Ours are fp16 minima, which m = -s z for a whole z does not reach. And
  transformers 5.23 cannot load asymmetric files in its default mode: the packed zero points have an unexpected shape.
* **Groups are whole.** compressed-tensors has no shorter last group, of weights or of inputs.
* **2:4 sparsity has no layout any more.** compressed-tensors 0.20 knows `sparse-24-bitmask` by name only, and vLLM 0.33
  refuses a `sparsity_config`. Zeros are written as the level 0, in whatever layout the layer has.

All others are refused with the way out: K-quants and NF4 (gguf has the former), e5m2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quant.activations import GROUP, Activations
from quant.errors import QuantError
from quant.grid import BLOCK, FloatGrid, Grid, GroupSize, IntGrid, KGrid, Scales
from quant.linear import QuantLinear
from quant.pack import unpack_words

Scheme = dict[str, Any]
"""A `config_groups` entry without its targets."""

PACKED, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
NV, MX = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_global_scale", "input_scale")


def scheme(name: str, layer: QuantLinear) -> Scheme:
    """How the layer of this name is described. Raises QuantError where the format cannot hold it."""
    grid, inputs = layer.grid, layer.activations
    problem = _problem(grid, inputs, layer.columns)
    if problem:
        raise QuantError(f"{name}: {problem}")
    return {
        "weights": _weights(grid, layer.columns), "input_activations": None if inputs is None else arguments(inputs),
        "output_activations": None, "format": _format(grid, inputs),
    }  # fmt: skip


def tensors(layer: QuantLinear) -> dict[str, Tensor]:
    """What is stored of a layer whose `scheme` there is, by name."""
    parts: dict[str, Tensor]
    match _format(layer.grid, layer.activations):
        case "pack-quantized":
            parts = {"weight_packed": layer.packed, "weight_shape": torch.tensor([layer.rows, layer.columns])}
        case "int-quantized":
            parts = {"weight": layer.codes()}
        case "float-quantized":
            parts = {"weight": layer.codes().view(torch.float8_e4m3fn)}
        case _:
            parts = {"weight_packed": layer.packed.view(torch.uint8)[:, : layer.columns // 2]}
    parts["weight_scale"] = layer.scale.expand(layer.rows, 1) if layer.grid.group_size == "tensor" else layer.scale
    if layer.outer is not None:
        parts["weight_global_scale"] = layer.outer.reshape(1)
    if layer.input_scale is not None:
        parts["input_scale"] = layer.input_scale
    return parts


def weight(name: str, scheme: Scheme, parts: Mapping[str, Tensor]) -> Tensor:
    """The weight float32 [N, K] that stored tensors stand for. Raises QuantError for what `tensors` does not write."""
    asked = scheme["weights"]
    if not asked["symmetric"]:
        raise QuantError(f"{name}: asymmetric weights cannot be read; quantize with symmetric=True")
    grid, format = _grid(asked), scheme["format"]
    lacking = [part for part in _needed(format) if part not in parts]
    if lacking:
        raise QuantError(f"{name}: the file has no {lacking[0]}, which {format} needs; export the model again")
    if format in (NV, MX):
        packed = parts["weight_packed"]
        codes = unpack_words(packed.contiguous().view(torch.int32), 4, 2 * packed.shape[1])
    elif format == PACKED:
        codes = unpack_words(parts["weight_packed"], grid.bits, int(parts["weight_shape"][1]))
    else:
        codes = parts["weight"].view(torch.int8)
    scale = parts["weight_scale"]
    outer = parts["weight_global_scale"].reshape(1, 1) if format == NV else None
    return grid.dequantize(codes, Scales(scale.reshape(1, 1) if scale.ndim < 2 else scale, outer=outer))


def arguments(rounding: Activations) -> dict[str, Any]:
    """How the rounding of inputs, or of a cache, is described."""
    return {
        "num_bits": 8, "type": "int" if rounding.format == "int8" else "float", "symmetric": True,
        "strategy": rounding.per, "group_size": GROUP if rounding.per == "group" else None, "dynamic": rounding.dynamic,
    }  # fmt: skip


def _problem(grid: Grid, inputs: Activations | None, columns: int) -> str | None:
    """Why a layer cannot be held, and what to do about it."""
    if isinstance(grid, KGrid):
        return "compressed_tensors has no K-quants; export gguf, or use grid 'int'"
    if not grid.symmetric:
        return "compressed_tensors cannot hold fp16 minima; use symmetric=True, or export gguf"
    if isinstance(grid, FloatGrid):
        fp4 = grid.format == "e2m1" and (grid.scaling, grid.group_size) in (("mx", 32), ("nv", 16))
        if not fp4 and (grid.format, grid.scaling) != ("e4m3", "float32"):
            return f"compressed_tensors has no {grid.format} with {grid.scaling} scales; use grid 'int', 'mx' or 'nv'"
        if fp4 and columns % grid.width(columns):
            return f"groups of {grid.group_size} do not divide {columns} inputs; use grid 'int'"
    if isinstance(grid.group_size, int) and columns > grid.group_size and columns % grid.group_size:
        return f"groups of {grid.group_size} do not divide {columns} inputs; use group_size None, or one that does"
    if inputs is not None and inputs.per == "group" and columns % GROUP:
        return f"activations in groups of {GROUP} do not divide {columns} inputs; use activations per token"
    return None


def _format(grid: Grid, inputs: Activations | None) -> str:
    if isinstance(grid, FloatGrid):
        return {"nv": NV, "mx": MX}.get(grid.scaling, FLOAT)
    by_row = grid.bits == 8 and not isinstance(grid.group_size, int)
    return INT if by_row and inputs is not None and inputs.format == "int8" and inputs.per != "group" else PACKED


def _needed(format: str) -> tuple[str, ...]:
    if format in (INT, FLOAT):
        return ("weight", "weight_scale")
    beside = {PACKED: ("weight_shape",), NV: ("weight_global_scale",)}.get(format, ())
    return ("weight_packed", "weight_scale", *beside)


def _weights(grid: Grid, columns: int) -> dict[str, Any]:
    """The arguments that describe a grid: the inverse of `_grid`, up to the one scale of a matrix or short row."""
    said: dict[str, Any] = {
        "num_bits": grid.bits, "type": "float" if isinstance(grid, FloatGrid) else "int", "symmetric": True,
        "dynamic": False, "group_size": None, "strategy": "channel",
    }  # fmt: skip
    if grid.group_size == "block":
        return said | {"strategy": "block", "block_structure": [BLOCK, BLOCK]}
    if isinstance(grid.group_size, int) and grid.group_size <= columns:
        nv = isinstance(grid, FloatGrid) and grid.scaling == "nv"
        return said | {"strategy": "tensor_group" if nv else "group", "group_size": grid.group_size}
    return said


def _grid(asked: Mapping[str, Any]) -> Grid:
    """The grid that these arguments describe."""
    strategy = asked["strategy"]
    size: GroupSize = strategy if strategy in ("block", "tensor") else asked["group_size"]
    if asked["type"] == "int":
        return IntGrid(asked["num_bits"], True, size)
    if asked["num_bits"] == 8:
        return FloatGrid("e4m3", size)
    return FloatGrid("e2m1", size, "nv" if strategy == "tensor_group" else "mx")
