"""Small floats, and other levels that are not evenly spaced: FP8, MXFP4, NVFP4, NF4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quant.grid.base import BLOCK, SHRINKS, Grid, GroupSize, Scales, Steps

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
            step = torch.ldexp(torch.ones_like(scales.scale, dtype=torch.float32), scales.scale.int() - 127)
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
