"""Number grids: which numbers there are, and how a real number gets one. The only file that rounds.

A grid is a set of levels and a way to scale them. A weight w in a group with step s and offset m is

    w = s l + m,      l a level, held as a small integer, its code

| grid                  | levels                                     | s, m of a group                              |
|-----------------------|--------------------------------------------|----------------------------------------------|
| `IntGrid` symmetric   | -2^(b-1) .. 2^(b-1) - 1   (8: -127 .. 127) | fp16                                         |
| `IntGrid` asymmetric  | 0 .. 2^b - 1                               | fp16, fp16 minimum                           |
| `FloatGrid` e4m3 e5m2 | the finite numbers of an 8-bit float       | float32 of a row, tensor or 128 x 128        |
| `FloatGrid` e2m1 "mx" | 0 .5 1 1.5 2 3 4 6 and their negatives     | a power of two for 32 (OCP MX: e8m0)         |
| `FloatGrid` e2m1 "nv" | the same                                   | e4m3 for 16, divided by one float32 (NVFP4)  |
| `FloatGrid` nf4       | quantiles of a normal distribution         | fp16                                         |
| `KGrid`               | as integers; 2, 4 and 5 bits asymmetric    | 4 to 8-bit integers times an fp16 for 256    |

**Full range, signed scale.** A two's complement integer has one level more below zero than above. The usual symmetric
grid drops it (s = max|w| / (2^(b-1) - 1)); here the longer tail of the group gets it: s = peak / -2^(b-1), where peak
is the entry of the largest magnitude with its sign, so s may be negative. At 2 bits that is four levels instead of
three, for free; llama.cpp's Q4_0 and compressed-tensors' pack-quantized both hold it as it is. At 8 bits the extra
level buys 0.4 % of a step, and -128 overflows int8 dot products in some kernels, so 8 bits uses -127 .. 127.

**Scales are rounded to what the format stores before any code is chosen**, so the codes are optimal for the scale that
will be used, and exports are lossless. The asymmetric minimum is an fp16 value, not an integer zero point: that is what
Q4_1 stores, and s * zero_point is in general no fp16 number.

**Clipping.** The step is searched over shrinks of the min-max range from 1.0 to 0.8 for the least squared error of
the group. Shrinking further (down to 0.3, as AWQ and HQQ code bases do) lowers the weight error and raises the KL; at
2 bits any shrink does, at 6 and 8 bits none is needed: these keep min-max. An `importance` of each input weighs the
error; GPTQ passes none (it made GPTQ worse, because GPTQ moves later weights anyway).

**Odd shapes.** Where the group size does not divide a row, its last group is shorter. Runtimes whose blocks cannot be
(GGUF, MX and NV layouts) say so when they are asked to export.

Sources: uniform affine grids, Jacob et al. 2018 (arXiv 1712.05877) section 2.1; straight-through rounding with a
clipped range, Esser et al. 2020 (LSQ, arXiv 1902.08153) equations 1 to 3; signed scale, llama.cpp `quantize_row_q4_0`;
K-quants, llama.cpp `ggml-quants.c`; FP8, Micikevicius et al. 2022 (arXiv 2209.05433); MX, Rouhani et al. 2023 (arXiv
2310.10537) and the OCP MX specification 1.0; NF4, Dettmers et al. 2023 (QLoRA, arXiv 2305.14314) appendix E.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from quant.errors import QuantError

FP16_MAX = 65504.0
SHRINKS = tuple(1.0 - 0.025 * i for i in range(9))
BLOCK = 128
SUPER_BLOCK = 256

GroupSize = int | Literal["tensor", "block"] | None
"""Weights along the input that share a step; None: a row; "tensor": all; "block": 128 x 128."""


class Scales(NamedTuple):
    """What a matrix stores beside its codes, in the types it is stored in; the meaning is the grid's."""

    scale: Tensor
    zero: Tensor | None = None
    outer: Tensor | None = None
    outer_zero: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Scales:
        """Each part that there is, changed."""
        return Scales(change(self.scale), *(None if part is None else change(part) for part in self[1:]))


class Steps(NamedTuple):
    """What `Scales` amount to: step and offset float32 [N, G] of each group of each row."""

    step: Tensor
    offset: Tensor | None


class Grid:
    """What every grid offers. Weights are float [N, K], codes int8 [N, K], G groups in a row."""

    bits: int
    symmetric: bool
    group_size: GroupSize

    local: ClassVar[bool] = True
    """Whether a group's scale is stored independently of all others'."""

    @property
    def adjustable(self) -> bool:
        """Whether each group of each row has a scale that can move a little."""
        return self.group_size not in ("tensor", "block")

    @property
    def low(self) -> float:
        """The lowest level."""
        raise NotImplementedError

    @property
    def high(self) -> float:
        """The highest level."""
        raise NotImplementedError

    @property
    def shrinks(self) -> tuple[float, ...]:
        """The ranges `find` tries, as fractions of min-max."""
        return SHRINKS

    def snap(self, position: Tensor) -> Tensor:
        """The nearest level of each real number, float32 of the same shape; ties go to the even code."""
        raise NotImplementedError

    def encode(self, levels: Tensor) -> Tensor:
        """Levels, float32 -> codes, int8."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Codes, int8 -> levels, float32."""
        raise NotImplementedError

    def store(self, steps: Steps) -> Scales:
        """The nearest steps and offsets that the format can hold, [N, G]; [1, 1] of tensors, [N / 128, G] of blocks."""
        raise NotImplementedError

    def steps(self, scales: Scales, rows: int) -> Steps:
        """What stored scales amount to, for each group of each of `rows` rows."""
        raise NotImplementedError

    def range(self, groups: Tensor, shrink: float) -> Steps:
        """The steps whose levels span the min-max range of groups float32 [N, G, size] times `shrink`."""
        raise NotImplementedError

    # What follows is the same for all grids.

    def width(self, columns: int) -> int:
        """How many neighbouring weights of a row of `columns` share a step."""
        if self.group_size == "block":
            return min(BLOCK, columns)
        return self.group_size if isinstance(self.group_size, int) else columns

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights."""
        return -(-columns // self.width(columns))

    def spread(self, values: Tensor, columns: int) -> Tensor:
        """[N, G] -> [N, columns], each group's value repeated over its columns."""
        return values.repeat_interleave(self.width(columns), dim=1)[:, :columns]

    def find(self, weight: Tensor, importance: Tensor | None = None, clip: bool = True) -> Scales:
        """Scales of least squared error, weighted by `importance` float32 [K] where given; of min-max without `clip`.

        Raises QuantError where a weight is not finite or beyond what the stored scale reaches.
        """
        columns, width = weight.shape[1], self.width(weight.shape[1])
        lacking = self.groups(columns) * width - columns
        weight = weight.float()
        counted = torch.ones(columns, device=weight.device) if importance is None else importance.float()
        groups = functional.pad(weight, (0, lacking), mode="replicate").unflatten(1, (-1, width))
        counted = functional.pad(counted, (0, lacking)).unflatten(0, (-1, width))
        best = self.range(groups, self.shrinks[0])
        for what, tensor in (("scale", best.step), ("minimum", best.offset)):
            if tensor is not None and not (tensor.abs() <= FP16_MAX).all():
                raise QuantError(f"a group's {what} exceeds fp16's {FP16_MAX:g} or is NaN; rescale the weights")
        if clip and len(self.shrinks) > 1:
            best = self._search(groups, counted, best)
        return self.store(best)

    def quantize(self, weight: Tensor, scales: Scales) -> Tensor:
        """The code of the nearest level of each weight: [N, K] float -> int8 [N, K]."""
        return self.encode(self.snap(self.position(weight, self.steps(scales, len(weight)))))

    def dequantize(self, codes: Tensor, scales: Scales) -> Tensor:
        """What the codes stand for: int8 [N, K] -> float32 [N, K], in one multiplication (and one addition)."""
        return self.value(self.decode(codes), self.steps(scales, len(codes)))

    def position(self, weight: Tensor, steps: Steps) -> Tensor:
        """Where among the levels each weight lies: the real number that `snap` rounds, [N, K] float32."""
        columns = weight.shape[1]
        step = self.spread(steps.step, columns)
        away = weight.float() if steps.offset is None else weight.float() - self.spread(steps.offset, columns)
        return torch.where(step == 0, 0.0, away / torch.where(step == 0, 1.0, step))

    def value(self, levels: Tensor, steps: Steps) -> Tensor:
        """What levels float32 [N, K] stand for."""
        columns = levels.shape[1]
        scaled = levels * self.spread(steps.step, columns)
        return scaled if steps.offset is None else scaled + self.spread(steps.offset, columns)

    def round_through(self, position: Tensor) -> Tensor:
        """`snap` with the straight-through gradient (LSQ eq. 3): 1 inside the range of levels, 0 outside."""
        inside = position.clamp(self.low, self.high)
        return inside + (self.snap(inside) - inside).detach()

    def blank(self, rows: int, columns: int) -> Scales:
        """Scales of a [rows, columns] matrix of zeros."""
        return self.store(self.range(torch.zeros(rows, self.groups(columns), 1), 1.0))

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """Stored bits of a [rows, columns] matrix, scales included, over its number of weights."""
        beside = sum(part.numel() * part.element_size() * 8 for part in self.blank(rows, columns) if part is not None)
        return self.bits + beside / (rows * columns)

    def _search(self, groups: Tensor, counted: Tensor, best: Steps) -> Steps:
        """For each group the best of the shrinks, as stored where each group's scale is stored alone."""
        least = None
        for shrink in self.shrinks:
            tried = self.range(groups, shrink)
            held = self.steps(self.store(tried), len(groups)) if self.local else tried
            step, offset = held.step[..., None], None if held.offset is None else held.offset[..., None]
            away = groups if offset is None else groups - offset
            level = self.snap(torch.where(step == 0, 0.0, away / torch.where(step == 0, 1.0, step)))
            error = ((level * step - away).square() * counted).sum(-1)
            if least is None:
                least = error
                continue
            better = error < least
            least = torch.where(better, error, least)
            both = None
            if tried.offset is not None and best.offset is not None:
                both = torch.where(better, tried.offset, best.offset)
            best = Steps(torch.where(better, tried.step, best.step), both)
        return best


@dataclass(frozen=True)
class IntGrid(Grid):
    """Integers of 2 to 8 bits, with fp16 scales.

    Attributes:
        bits: 2, 3, 4, 5, 6 or 8.
        symmetric: whether a group has a scale only, or a scale and a minimum.
        group_size: weights that share a scale, None for a row, "tensor" for all.
    """

    bits: int
    symmetric: bool = True
    group_size: GroupSize = 32

    @property
    def low(self) -> float:
        if not self.symmetric:
            return 0
        return -127 if self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> float:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def shrinks(self) -> tuple[float, ...]:
        return SHRINKS if self.bits in (3, 4, 5) and self.group_size != "tensor" else SHRINKS[:1]

    def snap(self, position: Tensor) -> Tensor:
        return position.round().clamp(self.low, self.high)

    def encode(self, levels: Tensor) -> Tensor:
        return (levels if self.symmetric else levels - 2 ** (self.bits - 1)).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float() if self.symmetric else codes.float() + 2 ** (self.bits - 1)

    def store(self, steps: Steps) -> Scales:
        return Scales(steps.step.half(), None if steps.offset is None else steps.offset.half())

    def steps(self, scales: Scales, rows: int) -> Steps:
        zero = None if scales.zero is None else scales.zero.float().expand(rows, -1)
        return Steps(scales.scale.float().expand(rows, -1), zero)

    def range(self, groups: Tensor, shrink: float) -> Steps:
        if self.group_size == "tensor":
            groups = groups.reshape(1, 1, -1)
        if not self.symmetric:
            low, high = groups.amin(-1), groups.amax(-1)
            middle, half = (low + high) / 2, (high - low) / 2 * shrink
            return Steps(2 * half / self.high, middle - half)
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return Steps(peak.abs() / self.high if self.bits == 8 else peak * shrink / self.low, None)


_MX_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_EIGHT_BITS = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}


@dataclass(frozen=True)
class FloatGrid(Grid):
    """Small floats and other levels that are not evenly spaced, always symmetric.

    Attributes:
        format: e4m3, e5m2 (8 bits), e2m1, nf4 (4 bits).
        group_size: as `Grid`'s; 32 for MX and 16 for NV scaling.
        scaling: how a group's scale is stored: float32, fp16, "mx" (a power of two) or "nv" (e4m3, over one float32).
    """

    format: Literal["e4m3", "e5m2", "e2m1", "nf4"] = "e4m3"
    group_size: GroupSize = None
    scaling: Literal["float32", "fp16", "mx", "nv"] = "float32"

    symmetric: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 8 if self.format in _EIGHT_BITS else 4

    @property
    def local(self) -> bool:  # type: ignore[override]
        return self.scaling != "nv"

    @property
    def adjustable(self) -> bool:
        return super().adjustable and self.scaling != "mx"

    @property
    def low(self) -> float:
        return -self.high

    @property
    def high(self) -> float:
        return _EIGHT_BITS[self.format][1] if self.format in _EIGHT_BITS else 1.0 if self.format == "nf4" else 6.0

    @property
    def shrinks(self) -> tuple[float, ...]:
        if self.format in _EIGHT_BITS:
            return SHRINKS[:1]
        return (1.0, 0.5) if self.scaling == "mx" else SHRINKS

    def snap(self, position: Tensor) -> Tensor:
        if self.format in _EIGHT_BITS:
            kind, limit = _EIGHT_BITS[self.format]
            return position.clamp(-limit, limit).to(kind).float()
        if self.format == "nf4":
            levels = position.new_tensor(_NF4_LEVELS)
            return levels[torch.bucketize(position, (levels[1:] + levels[:-1]) / 2)]
        levels = position.new_tensor(_MX_LEVELS)
        middles = (levels[1:] + levels[:-1]) / 2
        # A tie goes to the even code: upwards where the lower neighbour's is odd.
        middles[1::2] = torch.nextafter(middles[1::2], middles.new_zeros(()))
        return levels[torch.bucketize(position.abs(), middles)].copysign(position) + 0.0

    def encode(self, levels: Tensor) -> Tensor:
        if self.format in _EIGHT_BITS:
            return levels.to(_EIGHT_BITS[self.format][0]).view(torch.int8)
        if self.format == "nf4":
            return (torch.bucketize(levels, levels.new_tensor(_NF4_LEVELS)) - 8).to(torch.int8)
        index = torch.bucketize(levels.abs(), levels.new_tensor(_MX_LEVELS))
        return (index + 8 * (levels < 0) - 8).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        if self.format in _EIGHT_BITS:
            return codes.view(_EIGHT_BITS[self.format][0]).float()
        table = _NF4_LEVELS if self.format == "nf4" else _MX_LEVELS + tuple(-level for level in _MX_LEVELS)
        return torch.tensor(table, device=codes.device)[codes.long() + 8]

    def store(self, steps: Steps) -> Scales:
        step = steps.step
        if self.scaling == "mx":
            exponent = torch.where(step > 0, step, 2.0**-127).log2().ceil().clamp(-127, 127)
            return Scales((exponent + 127).to(torch.uint8))
        if self.scaling == "nv":
            peak = step.max().clamp(min=2.0**-100)
            divisor = (448.0 / peak).reshape(1, 1)
            return Scales((step * divisor).clamp(max=448.0).to(torch.float8_e4m3fn), outer=divisor)
        return Scales(step.half() if self.scaling == "fp16" else step)

    def steps(self, scales: Scales, rows: int) -> Steps:
        if self.scaling == "mx":
            # ldexp, as 2 ** x on some backends is not exact
            step = torch.ldexp(torch.ones((), device=scales.scale.device), scales.scale.int() - 127)
        elif self.scaling == "nv":
            assert scales.outer is not None
            step = scales.scale.float() / scales.outer
        else:
            step = scales.scale.float()
        if self.group_size == "block":
            step = step.repeat_interleave(BLOCK, 0)[:rows]
        return Steps(step.expand(rows, -1), None)

    def range(self, groups: Tensor, shrink: float) -> Steps:
        peak = groups.abs().amax(-1)
        if self.group_size == "tensor":
            peak = peak.amax().reshape(1, 1)
        elif self.group_size == "block":
            peak = torch.stack([rows.amax(0) for rows in peak.split(BLOCK)])
        return Steps(peak * shrink / self.high, None)


@dataclass(frozen=True)
class KGrid(Grid):
    """llama.cpp's K-quants: the scales of 16 or 32 weights are integers, too, times an fp16 a super-block of 256.

    Attributes:
        bits: 2, 3, 4, 5 or 6, for Q2_K to Q6_K.
    """

    bits: int

    local: ClassVar[bool] = False

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.bits in (3, 6)

    @property
    def group_size(self) -> GroupSize:  # type: ignore[override]
        return 32 if self.bits in (4, 5) else 16

    @property
    def low(self) -> float:
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> float:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def shrinks(self) -> tuple[float, ...]:
        return SHRINKS if self.bits in (3, 4, 5) else SHRINKS[:1]

    @property
    def scale_range(self) -> tuple[int, int]:
        """The least and the largest stored scale."""
        return {2: (0, 15), 3: (-32, 31), 4: (0, 63), 5: (0, 63), 6: (-128, 127)}[self.bits]

    def groups(self, columns: int) -> int:
        if columns % SUPER_BLOCK:
            raise QuantError(f"K-quants come in super-blocks of {SUPER_BLOCK}, which do not divide {columns} inputs")
        return super().groups(columns)

    def snap(self, position: Tensor) -> Tensor:
        return position.round().clamp(self.low, self.high)

    def encode(self, levels: Tensor) -> Tensor:
        return (levels if self.symmetric else levels - 2 ** (self.bits - 1)).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float() if self.symmetric else codes.float() + 2 ** (self.bits - 1)

    def store(self, steps: Steps) -> Scales:
        low, high = self.scale_range
        scale, outer = _two_level(self._by_super_block(steps.step), low, high)
        if steps.offset is None:
            return Scales(scale, None, outer)
        zero, outer_zero = _two_level(self._by_super_block(-steps.offset), low, high)
        return Scales(scale, zero, outer, outer_zero)

    def steps(self, scales: Scales, rows: int) -> Steps:
        assert scales.outer is not None
        step = self._inner(scales.scale, scales.outer)
        if scales.zero is None or scales.outer_zero is None:
            return Steps(step, None)
        return Steps(step, -self._inner(scales.zero, scales.outer_zero))

    def range(self, groups: Tensor, shrink: float) -> Steps:
        if self.symmetric:
            peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
            return Steps(peak * shrink / self.low, None)
        low, high = groups.amin(-1), groups.amax(-1)
        middle, half = (low + high) / 2, (high - low) / 2 * shrink
        offset = (middle - half).clamp(max=0)  # the format subtracts a minimum that is not negative
        return Steps((middle + half - offset) / self.high, offset)

    def _by_super_block(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, SUPER_BLOCK // self.width(SUPER_BLOCK)))

    def _inner(self, small: Tensor, outer: Tensor) -> Tensor:
        """Products float32 [N, G] of integers [N, G] and the fp16 [N, G / 8 or 16] of their super-block."""
        return (self._by_super_block(small).float() * outer.float()[..., None]).flatten(1)


def _two_level(values: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Integers [N, S * n] in low..high and fp16 [N, S] whose products come near values float32 [N, S, n]."""
    peak = values.gather(-1, values.abs().argmax(-1, keepdim=True))
    outer = (peak / (low or high)).half()
    divisor = outer.float()
    small = torch.where(divisor == 0, 0.0, values / torch.where(divisor == 0, 1.0, divisor)).round().clamp(low, high)
    return small.to(torch.int8 if low else torch.uint8).flatten(1), outer.squeeze(-1)
