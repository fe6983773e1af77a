"""Number grids: which integers there are, what they stand for, and how a real number gets one.

A group of `group_size` neighbouring weights of one output row shares a scale s (and a minimum m):

    symmetric    w = s q         q in -2^(b-1) .. 2^(b-1) - 1    (8 bits: -127 .. 127)
    asymmetric   w = s (q + 2^(b-1)) + m                         (the same integers, shifted to start at 0)

**Full range, signed scale.** A two's complement integer has one level more below zero than above. The usual symmetric
grid drops it (s = max|w| / (2^(b-1) - 1)); here the longer tail of the group gets it: s = peak / -2^(b-1), where peak
is the entry of the largest magnitude with its sign, so s may be negative. At 2 bits that is four levels instead of
three, for free; llama.cpp's Q4_0 and compressed-tensors' pack-quantized both hold it as it is. At 8 bits the extra
level buys 0.4 % of a step, and -128 overflows int8 dot products in some kernels, so 8 bits uses -127 .. 127.

**Scales are rounded to fp16 before any integer is chosen.** Both export formats store fp16 scales, so the integers are
optimal for the scale that will be used, and exports are lossless. The asymmetric minimum is an fp16 value, not an
integer zero point: that is what Q4_1 stores, and s * zero_point is in general no fp16 number.

**Clipping.** The scale is searched over shrinks of the min-max range from 1.0 to 0.8 for the least squared error of
the group. Shrinking further (down to 0.3, as AWQ and HQQ code bases do) lowers the weight error and raises the KL; at
2 bits any shrink does, at 8 bits none is needed: both keep min-max. Weighing the error by activation statistics made
GPTQ worse, because GPTQ moves later weights anyway. Rejected too: NF4-like non-uniform levels (no runtime layout).

Sources: uniform affine grids, Jacob et al. 2018 (arXiv 1712.05877) section 2.1; straight-through rounding with a
clipped range, Esser et al. 2020 (LSQ, arXiv 1902.08153) equations 1 to 3; signed scale, llama.cpp `quantize_row_q4_0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantError

FP16_MAX = 65504.0
SHRINKS = tuple(1.0 - 0.025 * i for i in range(9))


@dataclass(frozen=True)
class Grid:
    """A grid of `2 ** bits` levels.

    Attributes:
        bits: 2, 3, 4 or 8.
        symmetric: whether a group has a scale only, or a scale and a minimum.
        group_size: weights along the input that share a scale; None: one scale per output row.
    """

    bits: int
    symmetric: bool = True
    group_size: int | None = 32

    @property
    def low(self) -> int:
        return -127 if self.symmetric and self.bits == 8 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def groups(self, columns: int) -> int:
        """Number of groups in a row of `columns` weights. Raises QuantError where they do not fit."""
        size = self.group_size or columns
        if columns % size:
            raise QuantError(f"group size {size} does not divide {columns} inputs; use group_size=None or a divisor")
        return columns // size

    def find(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales, and minima where asymmetric, of least squared error.

        Args:
            weight: [N, K], any float type, finite.

        Returns:
            scale float16 [N, G] (0 for a group of zeros) and zero float16 [N, G], or None where symmetric.

        Raises:
            QuantError: K does not divide into groups, or a weight is beyond what an fp16 scale reaches.
        """
        groups = weight.float().unflatten(1, (self.groups(weight.shape[1]), -1))
        best: tuple[Tensor, Tensor | None] | None = None
        best_error = torch.empty(0)
        for shrink in SHRINKS if self.bits in (3, 4) else (1.0,):
            scale, zero = self._range(groups, shrink)
            if best is None:
                _refuse_overflow(scale, zero)
            error = (self._round_trip(groups, scale, zero) - groups).square().sum(-1)
            if best is None:
                best, best_error = (scale, zero), error
                continue
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = (
                torch.where(better, scale, best[0]),
                None if zero is None or best[1] is None else torch.where(better, zero, best[1]),
            )
        assert best is not None
        return best

    def quantize(self, weight: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """The nearest level of each weight: [N, K] float -> int8 [N, K]; ties go to the even integer.

        `scale` and `zero` are [N, G] with G dividing K, so a single column [N, 1] takes its group's [N, 1].
        """
        return self.position(weight, scale, zero).round().clamp(self.low, self.high).to(torch.int8)

    def dequantize(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """What the integers stand for: int8 [N, K] -> float32 [N, K], in one multiplication (and one addition)."""
        step = _spread(scale, codes.shape[1])
        if zero is None:
            return codes.float() * step
        return (codes.float() - self.low) * step + _spread(zero, codes.shape[1])

    def round_through(self, position: Tensor) -> Tensor:
        """Nearest level of positions already in units of the step, with the straight-through gradient (LSQ eq. 3).

        Float [N, K] -> float [N, K] of whole numbers. The gradient is 1 inside the range and 0 outside.
        """
        inside = position.clamp(self.low, self.high)
        return inside + (inside.round() - inside).detach()

    def _range(self, groups: Tensor, shrink: float) -> tuple[Tensor, Tensor | None]:
        """fp16 scale and minimum of [N, G, size] whose range is the min-max range times `shrink`."""
        if not self.symmetric:
            low, high = groups.amin(-1), groups.amax(-1)
            middle, half = (low + high) / 2, (high - low) / 2 * shrink
            return (2 * half / (2**self.bits - 1)).half(), (middle - half).half()
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return (peak.abs() / self.high if self.bits == 8 else peak * shrink / self.low).half(), None

    def _round_trip(self, groups: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        flat = groups.flatten(1)
        return self.dequantize(self.quantize(flat, scale, zero), scale, zero).unflatten(1, groups.shape[1:])

    def position(self, weight: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """Where on the grid a weight lies, in steps: the real number that `quantize` rounds."""
        step = _spread(scale, weight.shape[1])
        offset = weight.float() if zero is None else weight.float() - _spread(zero, weight.shape[1])
        position = torch.where(step == 0, 0.0, offset / torch.where(step == 0, 1.0, step))
        return position if zero is None else position + self.low


def _spread(scale: Tensor, columns: int) -> Tensor:
    """[N, G] -> float32 [N, columns], each group's value repeated over its columns."""
    return scale.float().repeat_interleave(columns // scale.shape[1], dim=1)


def _refuse_overflow(scale: Tensor, zero: Tensor | None) -> None:
    for what, tensor in (("scale", scale), ("minimum", zero)):
        if tensor is not None and not tensor.isfinite().all():
            raise QuantError(f"a group's {what} exceeds fp16's {FP16_MAX:g} or is not a number; rescale the weights")
