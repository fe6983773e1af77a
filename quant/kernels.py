"""Fused torch kernels for `QuantLinear`: measured on this machine, and taken only where they win.

    report = accelerate(model, rows=(1, 128), dtype=torch.bfloat16)     # layer -> the path it takes, and how fast
    print(model)                                                        # every QuantLinear says it, too

`QuantLinear.forward` unpacks and dequantizes at each call: exact, and up to 100 times slower than the float layer it
replaced. There are five ways out, each a class below, for inputs x [m, K] and weights w = step * code + low in groups:

| path           | weights it takes                            | beside rounding to `dtype`              | error |
|----------------|---------------------------------------------|-----------------------------------------|-------|
| `Dense`        | any; kept as floats, as large as before     | nothing: the reference's own numbers    | 0     |
| `Int4Packed`   | 2 to 4 bits, groups of 32, 64, 128 or 256   | scales are cut to bfloat16              | 0.01  |
| `Int8Packed`   | 2 to 8 bits, symmetric, a scale a row       | scales are cut to bfloat16              | 0.01  |
| `Int8Inputs`   | the same                                    | x on int8, the layer's way or a token's | 0.03  |
| `Float8Inputs` | e4m3, a scale a row or one; CUDA, from 8.9  | x on e4m3, the same                     | 0.05  |

The error is the largest of an output over the largest output, for normal x. It is checked on the layer's own weights
before a path is considered, as kernels do go wrong: torch 2.13's `_weight_int8pack_mm` reads past the end of rows
whose length 16 does not divide. The last two paths keep the numbers of a layer that rounds its inputs anyway; for
others they change what is computed, and are tried only with `round_inputs`.

**Which one is fastest depends on the number of rows,** so each of `rows` is measured by itself, and a call takes the
path measured at the next larger number. Times the speed of `nn.Linear` in float32 | in bfloat16, on one core of an EPYC
with AVX-512 that others used as well (bench/kernels.py; int4 in groups of 32):

| layer       | rows | reference   | `Int4Packed` | `Int8Packed` | `Int8Inputs` |
|-------------|------|-------------|--------------|--------------|--------------|
| 256 x 768   | 1    | 0.05 | 0.10 | 1.0 | 2.0    | 1.5 | 3.0    | 0.3 | 0.6    |
|             | 128  | 0.8 | 0.4   | 0.9 | 0.5    | 0.9 | 0.5    | 1.7 | 0.9    |
| 1024 x 4096 | 1    | 0.02 | 0.02 | 3.2 | 2.8    | 2.4 | 2.1    | 2.9 | 2.5    |
|             | 128  | 0.6 | 0.15  | 1.0 | 0.3    | 1.0 | 0.3    | 3.9 | 1.0    |
| 4096 x 4096 | 1    | 0.01 | 0.01 | 4.0 | 3.2    | 2.7 | 2.1    | 3.4 | 2.7    |
|             | 128  | 0.3 | 0.1   | 1.1 | 0.4    | 0.9 | 0.3    | 3.7 | 1.3    |

So packed weights are for decoding, and prompts go faster by `Dense` or by integers. The packed kernels multiply in
bfloat16: torch has them for float32 and float16 as well, as plain loops up to 100 times slower than the float layer, so
in these types `Dense` and `Int8Inputs` are all there is.

**What is not changed.** The state dict: packed copies are no buffers, and hang on the integers they were made of. If
these are replaced, loaded or moved to another device, the layer is back at its reference path, and says so. Kernels
have no gradient; where one is asked for, the reference path gives it.

Rejected: `quantized::linear_dynamic`, up to 1.8 times as fast as `Int8Inputs`, because its step is one for all tokens
of a call: what a request is answered would depend on the requests beside it; `_dyn_quant_matmul_4bit`, which is fast on
ARM only. `Float8Inputs` was tested for its numbers on a CPU, where torch emulates the operation; it never ran on a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.activations import Activations
from quant.errors import QuantError
from quant.grid import FloatGrid
from quant.linear import QuantLinear, QuantWeight

UNQUANTIZED, REFERENCE = "unquantized", "reference"
INT4_GROUPS = (32, 64, 128, 256)
SECONDS, TURNS, HOPELESS = 0.05, 3, 32.0

Clock = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]
"""Seconds that a call of each of these takes."""


class Affine(NamedTuple):
    """Evenly spaced weights: step * code + low. Codes int8 [N, K]; step and low float32 [N, G]."""

    codes: Tensor
    step: Tensor
    low: Tensor | None


def affine(weight: QuantWeight) -> Affine | None:
    """`weight` as steps of its stored integers, or None where its levels are not evenly spaced."""
    grid = weight.grid
    if isinstance(grid, FloatGrid):
        return None
    step, offset = grid.steps(weight.scales, weight.rows)
    return Affine(weight.codes(), step, None if offset is None else offset + 2 ** (grid.bits - 1) * step)


class Path(Protocol):
    """A way to multiply by a layer's weight: x [m, K] in `dtype`, bias [N] -> [m, N]."""

    error: ClassVar[float]
    rounds_inputs: ClassVar[bool]

    @property
    def name(self) -> str: ...

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Dense:
    """The weight dequantized once: as fast as before it was quantized, and as large."""

    weight: Tensor
    error: ClassVar[float] = 0.0
    rounds_inputs: ClassVar[bool] = False

    @classmethod
    def of(cls, layer: QuantLinear, dtype: torch.dtype) -> Dense:
        return cls(layer.dequantize().to(dtype))

    @property
    def name(self) -> str:
        return f"dequantized once to {str(self.weight.dtype).removeprefix('torch.')}"

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, self.weight, bias)


@dataclass(frozen=True, eq=False)
class Int4Packed:
    """`_weight_int4pack_mm_for_cpu`: w = (n - 8) s + z, for nibbles n, with s and z bfloat16 [K / width, N, 2]."""

    nibbles: Tensor
    width: int
    scales: Tensor
    name: ClassVar[str] = "int4 packed"
    error: ClassVar[float] = 0.01
    rounds_inputs: ClassVar[bool] = False

    @classmethod
    def of(cls, layer: QuantLinear, dtype: torch.dtype) -> Int4Packed | None:
        width = layer.grid.width(layer.columns)
        if (
            dtype != torch.bfloat16 or layer.packed.device.type != "cpu" or layer.grid.bits > 4
            or width not in INT4_GROUPS or layer.columns % width or layer.rows % 16
        ):  # fmt: skip
            return None
        held = affine(layer)
        if held is None:
            return None
        low = torch.zeros_like(held.step) if held.low is None else held.low
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(held.codes.int() + 8, 1)
        return cls(packed, width, torch.stack([held.step.T, low.T], dim=-1).to(dtype))

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.nibbles, self.width, self.scales)
        return y if bias is None else y + bias


@dataclass(frozen=True, eq=False)
class Int8Packed:
    """`_weight_int8pack_mm`: codes int8 [N, K], scales bfloat16 [N]."""

    codes: Tensor
    step: Tensor
    name: ClassVar[str] = "int8 packed"
    error: ClassVar[float] = 0.01
    rounds_inputs: ClassVar[bool] = False

    @classmethod
    def of(cls, layer: QuantLinear, dtype: torch.dtype) -> Int8Packed | None:
        held = _by_row(layer)
        if held is None or dtype != torch.bfloat16 or layer.columns % 16:  # 16: see the file's head
            return None
        return cls(held.codes, held.step[:, 0].to(dtype))

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm(x, self.codes, self.step)
        return y if bias is None else y + bias


@dataclass(frozen=True, eq=False)
class Int8Inputs:
    """`_int_mm`: codes int8 [N, K] times the levels of x, int8."""

    codes: Tensor
    step: Tensor
    activations: Activations
    input_scale: Tensor | None = None
    name: ClassVar[str] = "int8 inputs"
    error: ClassVar[float] = 0.03
    rounds_inputs: ClassVar[bool] = True

    @classmethod
    def of(cls, layer: QuantLinear, dtype: torch.dtype) -> Int8Inputs | None:
        held, activations = _by_row(layer), layer.activations or Activations("int8", "token", dynamic=True)
        if held is None or activations.format != "int8" or activations.per == "group":
            return None
        return cls(held.codes, held.step[:, 0], activations, layer.input_scale)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        step = self.activations.step(x.float(), self.input_scale)
        product = torch._int_mm(self.activations.snap(x / step).to(torch.int8), self.codes.T)
        y = (product * step * self.step).to(x.dtype)
        return y if bias is None else y + bias


@dataclass(frozen=True, eq=False)
class Float8Inputs:
    """`_scaled_mm`: e4m3 codes [N, K] times the levels of x, e4m3."""

    codes: Tensor
    step: Tensor
    activations: Activations
    input_scale: Tensor | None = None
    name: ClassVar[str] = "fp8 inputs"
    error: ClassVar[float] = 0.05
    rounds_inputs: ClassVar[bool] = True

    @classmethod
    def of(cls, layer: QuantLinear, dtype: torch.dtype) -> Float8Inputs | None:
        activations = layer.activations or Activations("e4m3", "token", dynamic=True)
        grid, device = layer.grid, layer.packed.device
        able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
        held = isinstance(grid, FloatGrid) and grid.format == "e4m3" and grid.group_size in (None, "tensor")
        fits = activations.format == "e4m3" and activations.per != "group"
        if not able or not held or not fits or layer.columns % 16 or layer.rows % 16:
            return None
        step = grid.steps(layer.scales, layer.rows).step.contiguous()
        return cls(layer.codes().view(torch.float8_e4m3fn), step, activations, layer.input_scale)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        step = self.activations.step(x.float(), self.input_scale).expand(len(x), 1).contiguous()
        levels = (x / step).clamp(-448, 448).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(levels, self.codes.T, scale_a=step, scale_b=self.step.T, out_dtype=torch.bfloat16)
        return y.to(x.dtype) if bias is None else y.to(x.dtype) + bias


PATHS = (Dense, Int4Packed, Int8Packed, Int8Inputs, Float8Inputs)


@dataclass(frozen=True, eq=False)
class Kernel:
    """What a layer computes with.

    Attributes:
        packed: the integers that the paths were made of; with others in the layer this kernel is void.
        dtype: the type that products are computed in.
        paths: (rows, path, speed) by rows: up to so many rows this path, which had so many times the speed of the
            unquantized layer; None is the layer's own reference.
    """

    packed: Tensor
    dtype: torch.dtype
    paths: tuple[tuple[int, Path | None, float], ...]

    def path(self, rows: int) -> Path | None:
        """The path of a call with so many rows."""
        return next((path for most, path, _ in self.paths if rows <= most), self.paths[-1][1])

    def __call__(self, layer: QuantLinear, x: Tensor) -> Tensor | None:
        """`layer`'s output for x [..., K] in x's type, or None where it is the reference's turn."""
        path = self.path(x.numel() // x.shape[-1]) if x.numel() else None
        if path is None or (x.requires_grad and torch.is_grad_enabled()):
            return None
        y = _multiply(layer, path, x.reshape(-1, x.shape[-1]), self.dtype)
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def __str__(self) -> str:
        spoken = [f"{rows}: {path.name if path else REFERENCE} ({speed:.2g}x)" for rows, path, speed in self.paths]
        return "rows " + ", ".join(spoken)


def accelerate(
    model: nn.Module,
    rows: Sequence[int] = (1, 128),
    dtype: torch.dtype | None = None,
    *,
    dense: bool = True,
    round_inputs: bool = False,
    clock: Clock | None = None,
) -> dict[str, str]:
    """Let each `QuantLinear` of `model` compute by the fastest path it has here. Returns which, by layer.

    Layers of one shape and grid are measured once, on the first of them.

    Args:
        model: changed in place; its state dict stays what it is.
        rows: numbers of rows (sequences times tokens) to measure; a call takes the path of the next larger one.
        dtype: type to compute in, the model's own if None. The kernels for packed weights know bfloat16 only.
        dense: whether a float copy of a weight may be kept, which is as large as the weight was before. Without it a
            layer that has no kernel says "reference".
        round_inputs: whether paths may round a layer's inputs to 8 bits where the model does not.
        clock: what tells the seconds; one that alternates between the paths if None.

    Raises:
        QuantError: `rows` is empty or holds a number below 1.
    """
    if not rows or min(rows) < 1:
        raise QuantError(f"rows are counts of tokens, got {tuple(rows)}; pass some such as (1, 128)")
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = dtype or next(floats, torch.float32)
    chosen: dict[tuple[object, ...], list[tuple[int, str, float]]] = {}
    report = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantLinear):
            continue
        layer.kernel = None
        within = dtype if layer.activations is None else torch.float32  # as the reference then does
        paths = _paths(layer, within, dense, round_inputs)
        kind = (layer.grid, layer.activations, layer.rows, layer.columns, layer.bias is None, tuple(paths))
        if kind not in chosen:
            chosen[kind] = [_fastest(layer, within, paths, m, clock or alternate) for m in sorted(set(rows))]
        taken = tuple((m, paths.get(won), speed) for m, won, speed in chosen[kind])
        if any(path for _, path, _ in taken):
            layer.kernel = Kernel(layer.packed, within, taken)
        report[name] = layer.path
    return report


def alternate(runs: Mapping[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, float]:
    """The least seconds of each of `runs`, called in turn so that a busy machine, and a cold cache, meet all of them.

    `seconds` are what each of them gets on average. One that is far slower than another is not called again
    after its second call.
    """
    least = dict.fromkeys(runs, math.inf)
    spent, turn = 0.0, 0
    while turn < TURNS or spent < seconds * len(runs):
        for name, run in runs.items():
            if turn > 1 and least[name] > HOPELESS * min(least.values()):
                continue
            started = time.perf_counter()
            run()
            took = time.perf_counter() - started
            spent += took
            least[name] = min(least[name], took)
        turn += 1
    return least


@torch.no_grad()
def _paths(layer: QuantLinear, dtype: torch.dtype, dense: bool, round_inputs: bool) -> dict[str, Path]:
    """The paths that there are for a layer and that compute what they should, by name."""
    x = torch.randn(8, layer.columns, device=layer.packed.device, dtype=dtype)
    expected = _multiply(layer, Dense.of(layer, dtype), x, dtype).float()
    made: dict[str, Path] = {}
    for kind in PATHS:
        if (kind is Dense and not dense) or (kind.rounds_inputs and not round_inputs and layer.activations is None):
            continue
        path: Path | None = kind.of(layer, dtype)
        if path is None:
            continue
        away = _multiply(layer, path, x, dtype).float() - expected
        if (away.abs().max() <= path.error * expected.abs().max()).item():
            made[path.name] = path
    return made


@torch.no_grad()
def _fastest(
    layer: QuantLinear, dtype: torch.dtype, paths: Mapping[str, Path], rows: int, clock: Clock
) -> tuple[int, str, float]:
    """The winner at so many rows, and how many times the unquantized layer's speed it has."""
    x = torch.randn(rows, layer.columns, device=layer.packed.device, dtype=dtype)
    weight, bias = layer.dequantize().to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    runs: dict[str, Callable[[], object]] = {
        UNQUANTIZED: lambda: functional.linear(x, weight, bias),
        REFERENCE: lambda: _multiply(layer, Dense.of(layer, dtype), x, dtype),
    }
    for name, path in paths.items():
        runs[name] = lambda path=path: _multiply(layer, path, x, dtype)  # type: ignore[misc]
    seconds = clock(runs)
    won = min((REFERENCE, *paths), key=lambda name: seconds[name])
    return rows, won, seconds[UNQUANTIZED] / seconds[won]


def _multiply(layer: QuantLinear, path: Path, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`layer`'s output [m, N] in `dtype` for x [m, K]."""
    if layer.activations is not None and not path.rounds_inputs:
        x = layer.activations.round(x, layer.input_scale)
    return path(x.to(dtype), None if layer.bias is None else layer.bias.to(dtype))


def _by_row(layer: QuantLinear) -> Affine | None:
    """A layer on the CPU whose rows have a scale each, and no minimum; None for others."""
    held = affine(layer) if layer.packed.device.type == "cpu" and layer.grid.symmetric else None
    return held if held is not None and held.step.shape[1] == 1 else None
