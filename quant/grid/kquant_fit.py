"""The search for the scales of a K-quant: integers times an fp16, several groups of weights to each fp16.

A weight of group g is w = d k_g q - e z_g, with q its level, k_g and z_g small integers of the group, and d and e fp16
of the super-block of 256. Rounding a group's best real scale to k_g d changes what its minimum, its levels and its
neighbours' d should be, so a super-block is fitted as a whole, for the least squared error, weighted by an importance
of the inputs where one is given:

1. For each group the real step and offset: levels taken from several ranges around min-max, and for the levels of each
   range the least squares solution. Sums over a group give the error of any step and offset while levels stay (`Sums`).
2. The fp16 whose multiples come nearest to these steps, each miss weighed by what it costs; the offsets that are best
   with the steps they became; the fp16 nearest to these.
3. Rounds: each integer moves to a neighbour, and the fp16 pair to the least squares solution, where that lowers the
   error, measured with each weight at its nearest level.

Against llama.cpp's own search (`quantize_q2_K` to `quantize_q6_K`, with and without importance matrix, the better of
the two), squared error on Gaussian, Student-t and real matrices: Q2_K 0.92 to 0.96 of it, Q3_K 0.97 to 0.99, Q4_K 0.96
to 0.97, Q5_K 0.92 to 0.94, Q6_K 0.97 to 0.98; weighted by an importance 0.86 to 0.98. Restarts from 24 other pairs of
fp16 gain 1 % (Q5_K 2 %), more rounds and starts 0.2 %. Against min-max scales, KL on two small models: -4 to -20 %
rounded to nearest, 0 to -6 % with GPTQ. Cost: about fifty passes over the weights, 0.15 s for 768 x 256 on a busy core.

Rejected: llama.cpp's weights sqrt(mean w^2 + w^2), which favour large weights. They moved KL by -8 to +4 % with GPTQ
and by -6 to +9 % without, and what is minimised would not be the error that is promised.

Sources: llama.cpp `ggml-quants.c` (`make_qkx3_quants`, `make_qx_quants`) for the problem; the solution is our own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from quant.grid.kquant import KGrid

STARTS, ROUNDS = 16, 3


class Sums(NamedTuple):
    """Over each group, weighted: the sums of 1, q, q^2, w and q w, for levels q and weights w. float32 [N, S, n].

    They hold all there is to know of the squared error of w = s q + m while the levels stay.
    """

    ones: Tensor
    levels: Tensor
    squares: Tensor
    weights: Tensor
    products: Tensor

    @classmethod
    def of(cls, levels: Tensor, groups: Tensor, counted: Tensor) -> Sums:
        scaled = counted * levels
        return cls(
            counted.sum(-1).expand(groups.shape[:-1]), scaled.sum(-1), (scaled * levels).sum(-1),
            (counted * groups).sum(-1), (scaled * groups).sum(-1),
        )  # fmt: skip


class Fit:
    """Scales of a few rows, while they are being fitted.

    Super-blocks have an axis of their own: groups [N, S, n, size], counted [S, n, size], integers as floats [N, S, n],
    fp16 as floats [N, S, 1]. A symmetric grid's minima are 0.
    """

    def __init__(self, grid: KGrid, groups: Tensor, counted: Tensor) -> None:
        self.grid, self.groups, self.counted = grid, groups, counted
        sums = self.free()
        step = self.solve(sums)[0]
        follows = 0.0 if grid.symmetric else sums.levels.square() / sums.ones  # what the offset makes up for
        self.scale, self.outer = two_level(step, *grid.scale_range, (sums.squares - follows).clamp(min=0))
        minimum = -self.offset(sums, self.scale * self.outer)
        self.zero, self.outer_zero = two_level(minimum, *grid.scale_range, sums.ones)

    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Integer scales and their fp16, integer minima and theirs."""
        for _ in range(ROUNDS):
            self.move()
            self.refit()
        return self.scale, self.outer, self.zero, self.outer_zero

    def free(self) -> Sums:
        """The sums over the levels of each group that leave the least error at real steps and offsets."""
        full = self.grid.range(self.groups, 1.0)
        offset = torch.zeros_like(full.step) if full.offset is None else full.offset
        span = -self.grid.low if self.grid.symmetric else self.grid.high
        found, least = None, None
        for start in torch.linspace(span - 0.95, span + 0.95, STARTS).tolist():
            sums = self.sums(full.step * span / start, offset)
            step, minimum = self.solve(sums)
            error = (
                sums.squares * step.square() + sums.ones * minimum.square()
                + 2 * (sums.levels * step * minimum - sums.products * step - sums.weights * minimum)
            )  # fmt: skip
            if found is None or least is None:
                found, least = sums, error
                continue
            found = Sums(*(torch.where(error < least, new, old) for new, old in zip(sums, found, strict=True)))
            least = torch.minimum(error, least)
        assert found is not None
        return found

    def move(self) -> None:
        """Move each integer scale, with the minimum that fits it best, and each minimum, where it lowers the error."""
        low, high = self.grid.scale_range
        sums, start = self.sums(self.scale * self.outer, -self.zero * self.outer_zero), self.scale
        least = self.error(self.scale, self.outer, self.zero, self.outer_zero)
        for by in (-1, 0, 1):
            scale = (start + by).clamp(low, high)
            zero = _ratio(-self.offset(sums, scale * self.outer), self.outer_zero).round().clamp(low, high)
            least = self.take(scale, zero, least)
        for by in (-1, 1) if not self.grid.symmetric else ():
            least = self.take(self.scale, (self.zero + by).clamp(low, high), least)

    def take(self, scale: Tensor, zero: Tensor, least: Tensor) -> Tensor:
        """Take these integers for groups whose error falls below `least` [N, S, n]; the least errors from then on."""
        error = self.error(scale, self.outer, zero, self.outer_zero)
        better = error < least
        self.scale, self.zero = torch.where(better, scale, self.scale), torch.where(better, zero, self.zero)
        return torch.minimum(error, least)

    def refit(self) -> None:
        """Take the fp16 pair that leaves the least error while integers and levels stay, where it does."""
        sums = self.sums(self.scale * self.outer, -self.zero * self.outer_zero)

        def total(part: Tensor) -> Tensor:
            return part.sum(-1, keepdim=True)

        # The normal equations of w = outer (scale q) - outer_zero zero.
        a, b = total(self.scale.square() * sums.squares), -total(self.scale * self.zero * sums.levels)
        c = total(self.zero.square() * sums.ones)
        p, q = total(self.scale * sums.products), -total(self.zero * sums.weights)
        outer_zero = _ratio(a * q - b * p, a * c - b * b).half().float()
        outer = _ratio(p - b * outer_zero, a).half().float()
        better = total(self.error(self.scale, outer, self.zero, outer_zero)) < total(
            self.error(self.scale, self.outer, self.zero, self.outer_zero)
        )
        self.outer = torch.where(better, outer, self.outer)
        self.outer_zero = torch.where(better, outer_zero, self.outer_zero)

    def solve(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """The real step and offset of least error [N, S, n] while the levels stay."""
        spread = sums.squares * sums.ones - sums.levels.square()
        spread = torch.where(spread > 1e-5 * sums.squares * sums.ones, spread, 0.0)
        offset = self.offset(sums, _ratio(sums.products * sums.ones - sums.levels * sums.weights, spread))
        return _ratio(sums.products - offset * sums.levels, sums.squares), offset

    def offset(self, sums: Sums, step: Tensor) -> Tensor:
        """The offset of least error for a step; 0 at most, and 0 of a symmetric grid."""
        best = (sums.weights - step * sums.levels) / sums.ones
        return torch.zeros_like(best) if self.grid.symmetric else best.clamp(max=0)

    def levels(self, step: Tensor, offset: Tensor) -> Tensor:
        return self.grid.snap(_ratio(self.groups - offset[..., None], step[..., None]))

    def sums(self, step: Tensor, offset: Tensor) -> Sums:
        return Sums.of(self.levels(step, offset), self.groups, self.counted)

    def error(self, scale: Tensor, outer: Tensor, zero: Tensor, outer_zero: Tensor) -> Tensor:
        """The error of each group [N, S, n], its weights at the nearest levels."""
        step, offset = scale * outer, -zero * outer_zero
        left = self.levels(step, offset) * step[..., None] + offset[..., None] - self.groups
        return (left.square() * self.counted).sum(-1)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """The quotient, and 0 where the divisor is."""
    return torch.where(bottom == 0, 0.0, top / torch.where(bottom == 0, 1.0, bottom))


def two_level(values: Tensor, low: int, high: int, cost: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Integers [N, S, n] in low..high and fp16 [N, S, 1], both as float32, whose products come near `values`.

    The integer of the largest value goes over the outer half of the range, so values that such products are come back
    as they were. `cost` [N, S, n] weighs the squared misses.
    """
    if not low:
        values = values.clamp(min=0)  # one of the other sign must not turn the fp16 against all the rest
    peak = values.gather(-1, values.abs().argmax(-1, keepdim=True))
    if not peak.any():
        return torch.zeros_like(values), torch.zeros_like(peak)
    edge, by = low or high, 0.5 if high < 64 else 1.0
    found, least = None, None
    for i in range(int(abs(edge) / 2 / by) + 1):
        outer = (peak / (edge - math.copysign(i * by, edge))).half().float()
        small = _ratio(values, outer).round().clamp(low, high)
        error = (small * outer - values).square()
        error = (error if cost is None else error * cost).sum(-1, keepdim=True)
        if found is None or least is None:
            found, least = (small, outer), error
            continue
        better = error < least
        found = torch.where(better, small, found[0]), torch.where(better, outer, found[1])
        least = torch.where(better, error, least)
    assert found is not None
    return found
