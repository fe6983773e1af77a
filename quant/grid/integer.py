"""Integers of 2 to 8 bits, symmetric or with a minimum; fp16 scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.grid.base import SHRINKS, Grid, GroupSize, Scales, Steps


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
