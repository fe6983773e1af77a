"""What every grid offers; a grid says what its levels are and how it stores its scales, the rest is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from quant.errors import QuantError

FP16_MAX = 65504.0
SHRINKS = tuple(1.0 - 0.025 * i for i in range(9))
BLOCK = 128
AT_ONCE = 2**17
"""Weights whose scales are searched at a time: what fits a cache."""

GroupSize = int | Literal["tensor", "block"] | None
"""Weights along the input that share a step; None: a row; "tensor": all; "block": 128 x 128."""


class Scales(NamedTuple):
    """What a matrix stores beside its codes, in the types it is stored in; the meaning is the grid's."""

    scale: Tensor
    zero: Tensor | None = None
    outer: Tensor | None = None
    outer_zero: Tensor | None = None

    @classmethod
    def joined(cls, groups: Sequence[Scales]) -> Scales:
        """Those of neighbouring groups of columns, one after another."""
        parts = ([part for part in column if part is not None] for column in zip(*groups, strict=True))
        scale, *others = (torch.cat(column, dim=1) if column else None for column in parts)
        assert scale is not None
        return cls(scale, *others)

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
        counted = torch.ones(columns, device=weight.device) if importance is None else importance.float()
        counted = functional.pad(counted, (0, lacking)).unflatten(0, (-1, width))
        found: list[Steps] = []
        # Rows in parts that fit a cache: four times faster than a large matrix at once, and no memory to speak of.
        at_once = len(weight) if self.group_size in ("tensor", "block") else max(1, AT_ONCE // columns)
        for rows in weight.split(at_once):
            groups = functional.pad(rows.float(), (0, lacking), mode="replicate").unflatten(1, (-1, width))
            best = self._min_max(groups)
            found.append(self._search(groups, counted, best) if clip and len(self.shrinks) > 1 else best)
        offsets = [steps.offset for steps in found if steps.offset is not None]
        return self.store(Steps(torch.cat([steps.step for steps in found]), torch.cat(offsets) if offsets else None))

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

    def _min_max(self, groups: Tensor) -> Steps:
        """The steps of the whole range of groups float32 [N, G, size]. Raises QuantError where there is none."""
        found = self.range(groups, self.shrinks[0])
        for what, tensor in (("scale", found.step), ("minimum", found.offset)):
            if tensor is not None and not (tensor.abs() <= FP16_MAX).all():
                raise QuantError(f"a group's {what} exceeds fp16's {FP16_MAX:g} or is NaN; rescale the weights")
        return found

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
