"""QuantLinear: packed integers and fp16 scales where an `nn.Linear` was; QuantEmbedding, the same for a token table;
LatentLinear, a QuantLinear while its integers and scales are being learned.

The forward pass unpacks, dequantizes to float32, rounds once to the input's type and multiplies. That is the reference
semantics of every weight-only format; speed is the runtimes' business (`exports/`), and that of `kernels.py` in torch.

    packed                           int32 [N, ceil(K * bits / 32)], `pack.pack_words`
    scale, zero, outer, outer_zero   `grid.Scales`, those that the grid has
    bias                             float [N], where the layer had one
    input_scale                      float32 [1], where inputs are rounded with a step known beforehand

A layer may round its inputs, too (`activations.py`); then the product is float32, as an accumulator is.

The scales keep their types when the model is moved to another float type: fp16 to bf16 would change 3 of their bits,
and with them what the integers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.grid import Grid, Scales, Steps
from quant.pack import pack_words, unpack_words

if TYPE_CHECKING:
    from quant.activations import Activations
    from quant.kernels import Kernel

LEAN = 0.25


class QuantWeight(nn.Module):
    """A matrix [rows, columns] held as codes on `grid`. Empty until a state dict or `hold` fills it."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    outer: Tensor | None
    outer_zero: Tensor | None
    unpacked: Tensor | None = None  # see `unpacked`

    def __init__(self, rows: int, columns: int, grid: Grid) -> None:
        super().__init__()
        self.rows, self.columns, self.grid = rows, columns, grid
        words = -(-columns * grid.bits // 32)
        self.register_buffer("packed", torch.zeros(rows, words, dtype=torch.int32))
        for part, tensor in grid.blank(rows, columns)._asdict().items():
            self.register_buffer(part, tensor)

    @property
    def scales(self) -> Scales:
        return Scales(self.scale, self.zero, self.outer, self.outer_zero)

    def hold(self, codes: Tensor, scales: Scales) -> None:
        """Take codes int8 [rows, columns] and their scales, on their device."""
        self.packed = pack_words(codes, self.grid.bits)
        for part, tensor in scales._asdict().items():
            setattr(self, part, None if tensor is None else tensor.contiguous())

    def codes(self) -> Tensor:
        """The codes, int8 [rows, columns]."""
        return unpack_words(self.packed, self.grid.bits, self.columns)

    def dequantize(self) -> Tensor:
        """The weight these codes stand for, float32 [rows, columns]."""
        if self.unpacked is not None:
            return self.unpacked
        return self.grid.dequantize(self.codes(), self.scales)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, {self.grid}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantWeight:
        before = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, tensor in before._asdict().items():
            setattr(self, part, None if tensor is None else tensor.to(self.packed.device))
        return self


@contextmanager
def unpacked(module: nn.Module) -> Iterator[None]:
    """Inside, layers of `module` keep their dequantized weights, so that many batches pass at the price of one."""
    layers = [part for part in module.modules() if isinstance(part, QuantWeight)]
    for layer in layers:
        layer.unpacked = layer.dequantize()
    try:
        yield
    finally:
        for layer in layers:
            layer.unpacked = None


class QuantLinear(QuantWeight):
    """`nn.Linear(columns, rows)` on a grid: x [..., columns] -> [..., rows] in x's type."""

    bias: Tensor | None
    input_scale: Tensor | None
    kernel: Kernel | None = None  # see quant.kernels

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: Grid,
        bias: Tensor | None = None,
        activations: Activations | None = None,
    ) -> None:
        super().__init__(out_features, in_features, grid)
        self.in_features, self.out_features, self.activations = in_features, out_features, activations
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        static = activations is not None and not activations.dynamic
        self.register_buffer("input_scale", torch.ones(1) if static else None)

    @classmethod
    def round(
        cls,
        linear: nn.Linear,
        grid: Grid,
        clip: bool = True,
        activations: Activations | None = None,
        input_scale: Tensor | None = None,
    ) -> QuantLinear:
        """`linear` with each weight rounded to the nearest level."""
        weight = linear.weight.detach()
        scales = grid.find(weight, clip=clip)
        return cls.of(linear, grid, grid.quantize(weight, scales), scales, activations, input_scale)

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        grid: Grid,
        codes: Tensor,
        scales: Scales,
        activations: Activations | None = None,
        input_scale: Tensor | None = None,
    ) -> QuantLinear:
        """`linear` with these codes for its weights; `input_scale` float32 [1] is the step of static activations."""
        layer = cls(linear.in_features, linear.out_features, grid, linear.bias, activations)
        layer.hold(codes, scales)
        assert (input_scale is not None) == (layer.input_scale is not None)
        layer.input_scale = None if input_scale is None else input_scale.to(layer.packed.device)
        return layer

    @property
    def path(self) -> str:
        """What computes the product: a kernel of `quant.kernels`, or "reference"."""
        return str(self.kernel) if self.kernel is not None and self.kernel.packed is self.packed else "reference"

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.packed is self.packed:
            y = self.kernel(self, x)
            if y is not None:
                return y
        rounded = x if self.activations is None else self.activations.round(x, self.input_scale)
        bias = None if self.bias is None else self.bias.to(rounded.dtype)
        return functional.linear(rounded, self.dequantize().to(rounded.dtype), bias).to(x.dtype)

    def extra_repr(self) -> str:
        rounding = "" if self.activations is None else f", {self.activations}"
        return f"{super().extra_repr()}{rounding}, {self.path}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        before = self.input_scale
        super()._apply(fn, recurse)
        self.input_scale = None if before is None else before.to(self.packed.device)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.kernel = None  # it was made of other integers
        super()._load_from_state_dict(*args)  # type: ignore[no-untyped-call]


class QuantEmbedding(QuantWeight):
    """`nn.Embedding(rows, columns)` on a grid: ids [...] -> [..., columns] in the table's former type.

    `multiplier` is what rows are multiplied by on their way out, as Gemma's are.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, grid: Grid, dtype: torch.dtype, multiplier: float = 1.0
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, grid)
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype
        self.multiplier = multiplier

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        codes = unpack_words(self.packed[flat], self.grid.bits, self.columns)
        scales = self.scales.map(lambda part: part[flat] if len(part) > 1 else part)
        rows = self.grid.dequantize(codes, scales).to(self.dtype).unflatten(0, ids.shape)
        return rows if self.multiplier == 1 else rows * torch.tensor(self.multiplier, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantEmbedding:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return self

    def head(self, bias: Tensor | None = None) -> QuantLinear:
        """An output head that shares this table's tensors."""
        head = QuantLinear(self.columns, self.rows, self.grid, bias)
        head.packed = self.packed
        for part, tensor in self.scales._asdict().items():
            setattr(head, part, tensor)
        return head


class LatentLinear(nn.Module):
    """A `QuantLinear` in training: its forward is the quantized one, its parameters are real numbers.

    `position` float32 [N, K] is where each weight lies among the levels: rounded on the way to the product, with the
    straight-through gradient back. `stretch` float32 [N, G] is the change of a step relative to what it was, `shift`
    float32 [N, G] that of an offset in steps (asymmetric grids only), both times half the range of the levels. So one
    learning rate fits all three, every layer and bit width: half a step is what changes a code, and a scale moves its
    outermost levels as fast as a weight moves itself. With a `rank`, positions move by up [N, rank] times down
    [rank, K] instead.
    """

    def __init__(
        self, layer: QuantLinear, weight: Tensor, lean: float = LEAN, rank: int = 0, scales: bool = True
    ) -> None:
        """Start at the codes of `layer`, leaning towards `weight` float [N, K] by `lean` of a step at most.

        With `scales` False, or on a grid whose scales cannot move a little, only positions are learned.
        """
        super().__init__()
        self.layer, grid = layer, layer.grid
        self.start = grid.steps(layer.scales, layer.rows)
        self.half_range = (grid.high - grid.low + 1) / 2
        levels = grid.decode(layer.codes())
        away = grid.position(weight, self.start) - levels
        position = (levels + away.clamp(-lean, lean)).clamp(grid.low, grid.high)
        movable = scales and grid.adjustable
        self.position = nn.Parameter(position, requires_grad=rank == 0)
        self.stretch = nn.Parameter(torch.zeros_like(self.start.step), requires_grad=movable)
        self.shift = None
        if self.start.offset is not None:
            self.shift = nn.Parameter(torch.zeros_like(self.stretch), requires_grad=movable)
        self.up = self.down = None
        if rank:
            random = torch.Generator().manual_seed(layer.rows * layer.columns)
            down = torch.randn(rank, layer.columns, generator=random) / rank**0.5
            self.down = nn.Parameter(down.to(position.device))
            self.up = nn.Parameter(position.new_zeros(layer.rows, rank))

    def learned(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def positions(self) -> Tensor:
        """Where the weights lie now, float32 [N, K]."""
        return self.position if self.up is None or self.down is None else self.position + self.up @ self.down

    def steps(self) -> Steps:
        """The steps and offsets that the parameters have come to."""
        step = self.start.step * (1 + self.stretch / self.half_range)
        if self.start.offset is None or self.shift is None:
            return Steps(step, None)
        return Steps(step, self.start.offset + self.start.step * self.shift / self.half_range)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.layer.grid
        weight = grid.value(grid.round_through(self.positions()), self.steps())
        return functional.linear(x, weight.to(x.dtype), self.layer.bias)

    @torch.no_grad()
    def keep_inside(self) -> None:
        """Bring positions back into the grid's range: outside it no gradient ever would."""
        self.position.clamp_(self.layer.grid.low, self.layer.grid.high)

    @torch.no_grad()
    def settled(self) -> QuantLinear:
        """A `QuantLinear` of the codes and stored scales that the parameters have come to."""
        old, grid = self.layer, self.layer.grid
        new = QuantLinear(old.in_features, old.out_features, grid, old.bias)
        scales = self._stored()
        if grid.local:
            new.hold(grid.encode(grid.snap(self.positions())), scales)
        else:  # rounding one scale moves others, so each weight looks for its level again
            new.hold(grid.quantize(grid.value(self.positions(), self.steps()), scales), scales)
        return new

    def _stored(self) -> Scales:
        """The learned scales as the format holds them; scales nobody moved come back bit for bit."""
        if not self.stretch.any() and (self.shift is None or not self.shift.any()):
            return self.layer.scales
        return self.layer.grid.store(self.steps())
