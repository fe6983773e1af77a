"""llama.cpp's K-quants Q2_K to Q6_K: integer scales in super-blocks of 256."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.grid.base import AT_ONCE, Grid, GroupSize, Scales, Steps
from quant.grid.kquant_fit import Fit, two_level

SUPER_BLOCK = 256


@dataclass(frozen=True)
class KGrid(Grid):
    """llama.cpp's K-quants: the scales of 16 or 32 weights are integers, too, times an fp16 a super-block of 256.

    Integer scales cannot be chosen group by group: `find` fits each super-block as a whole (`kquant_fit.py`).

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

    def find(self, weight: Tensor, importance: Tensor | None = None, clip: bool = True) -> Scales:
        if not clip:
            return super().find(weight, importance, clip)
        self._min_max(weight.float().unflatten(1, (self.groups(weight.shape[1]), -1)))  # refuses what has no fp16
        counted = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance.float()
        counted = counted / counted.mean().clamp(min=1e-30) + 1e-6  # a group of dead inputs has a best fit, too
        shape = (-1, SUPER_BLOCK // self.width(SUPER_BLOCK), self.width(SUPER_BLOCK))
        fits = [
            self._stored(*Fit(self, rows.unflatten(1, shape), counted.unflatten(0, shape)).best())
            for rows in weight.float().split(max(1, AT_ONCE // weight.shape[1]))
        ]
        parts = [None if part[0] is None else torch.cat(part) for part in zip(*fits, strict=True)]
        return Scales(*parts)  # type: ignore[arg-type]

    def store(self, steps: Steps) -> Scales:
        minimum = torch.zeros_like(steps.step) if steps.offset is None else -steps.offset
        shape = (-1, SUPER_BLOCK // self.width(SUPER_BLOCK))
        scale, zero = (two_level(part.unflatten(1, shape), *self.scale_range) for part in (steps.step, minimum))
        return self._stored(*scale, *zero)

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

    def _inner(self, small: Tensor, outer: Tensor) -> Tensor:
        """Products float32 [N, G] of integers [N, G] and the fp16 [N, G / 8 or 16] of their super-block."""
        return (small.unflatten(1, (outer.shape[1], -1)).float() * outer.float()[..., None]).flatten(1)

    def _stored(self, scale: Tensor, outer: Tensor, zero: Tensor, outer_zero: Tensor) -> Scales:
        """Integers, float32 [N, S, n], and their fp16, float32 [N, S, 1], as they are stored."""
        small = torch.int8 if self.scale_range[0] else torch.uint8
        if self.symmetric:
            return Scales(scale.to(small).flatten(1), None, outer.half().squeeze(-1))
        minima = zero.to(small).flatten(1), outer_zero.half().squeeze(-1)
        return Scales(scale.to(small).flatten(1), minima[0], outer.half().squeeze(-1), minima[1])
