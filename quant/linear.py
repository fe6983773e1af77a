"""QuantLinear: packed integers and fp16 scales where an `nn.Linear` was; QuantEmbedding, the same for a token table;
LatentLinear, a QuantLinear while its integers and scales are being learned.

The forward pass unpacks, dequantizes to float32, rounds once to the input's type and multiplies. That is the reference
semantics of every weight-only format; speed is the runtimes' business (`exports/`). A fused kernel was left out on
purpose: one code path, whose numbers are the exported ones.

    packed  int32  [N, ceil(K * bits / 32)]   `pack.pack_words`
    scale   fp16   [N, G]
    zero    fp16   [N, G], asymmetric grids only
    bias    float  [N], where the layer had one

The scales stay fp16 when the model is moved to another float type: bf16 would change 3 of their bits, and with them
what the integers mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.grid import Grid
from quant.pack import pack_words, unpack_words

LEAN = 0.25


class QuantWeight(nn.Module):
    """A matrix [rows, columns] held as integers on `grid`. Empty until a state dict or `hold` fills it."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, rows: int, columns: int, grid: Grid) -> None:
        super().__init__()
        self.rows, self.columns, self.grid = rows, columns, grid
        words, groups = -(-columns * grid.bits // 32), grid.groups(columns)
        self.register_buffer("packed", torch.zeros(rows, words, dtype=torch.int32))
        self.register_buffer("scale", torch.zeros(rows, groups, dtype=torch.float16))
        self.register_buffer("zero", None if grid.symmetric else torch.zeros(rows, groups, dtype=torch.float16))

    def hold(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> None:
        """Take codes int8 [rows, columns], scale and zero float16 [rows, G], on their device."""
        self.packed, self.scale = pack_words(codes, self.grid.bits), scale.contiguous()
        self.zero = None if zero is None else zero.contiguous()

    def codes(self) -> Tensor:
        """The integers, int8 [rows, columns]."""
        return unpack_words(self.packed, self.grid.bits, self.columns)

    def dequantize(self) -> Tensor:
        """The weight these integers stand for, float32 [rows, columns]."""
        return self.grid.dequantize(self.codes(), self.scale, self.zero)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, {self.grid}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantWeight:
        scale, zero = self.scale, self.zero
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale.to(self.scale.device)
        self.zero = None if zero is None else zero.to(self.scale.device)
        return self


class QuantLinear(QuantWeight):
    """`nn.Linear(columns, rows)` on a grid: x [..., columns] -> [..., rows] in x's type."""

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, grid: Grid, bias: Tensor | None = None) -> None:
        super().__init__(out_features, in_features, grid)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def round(cls, linear: nn.Linear, grid: Grid) -> QuantLinear:
        """`linear` with each weight rounded to the nearest level."""
        weight = linear.weight.detach()
        scale, zero = grid.find(weight)
        return cls.of(linear, grid, grid.quantize(weight, scale, zero), scale, zero)

    @classmethod
    def of(cls, linear: nn.Linear, grid: Grid, codes: Tensor, scale: Tensor, zero: Tensor | None) -> QuantLinear:
        """`linear` with these integers for its weights."""
        layer = cls(linear.in_features, linear.out_features, grid, linear.bias)
        layer.hold(codes, scale, zero)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.dequantize().to(x.dtype), self.bias)


class QuantEmbedding(QuantWeight):
    """`nn.Embedding(rows, columns)` on a grid: ids [...] -> [..., columns] in the table's former type."""

    def __init__(self, num_embeddings: int, embedding_dim: int, grid: Grid, dtype: torch.dtype) -> None:
        super().__init__(num_embeddings, embedding_dim, grid)
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        zero = None if self.zero is None else self.zero[flat]
        codes = unpack_words(self.packed[flat], self.grid.bits, self.columns)
        return self.grid.dequantize(codes, self.scale[flat], zero).to(self.dtype).unflatten(0, ids.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantEmbedding:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return self

    def head(self) -> QuantLinear:
        """An output head that shares this table's tensors."""
        head = QuantLinear(self.columns, self.rows, self.grid)
        head.packed, head.scale, head.zero = self.packed, self.scale, self.zero
        return head


class LatentLinear(nn.Module):
    """A `QuantLinear` in training: its forward is the quantized one, its parameters are real numbers.

    `position` float32 [N, K] is where each weight lies on the grid, in steps: rounded on the way to the product, with
    the straight-through gradient back. `stretch` float32 [N, G] is the change of a scale relative to what it was,
    `shift` float32 [N, G] that of a minimum in steps (asymmetric grids only), both times half the number of levels.
    So one learning rate fits all three, every layer and bit width: half a step is what changes an integer, and a
    scale moves its outermost levels as fast as a weight moves itself.
    """

    def __init__(self, layer: QuantLinear, weight: Tensor) -> None:
        """Start at the integers of `layer`, leaning towards `weight` float [N, K] by `LEAN` of a step at most."""
        super().__init__()
        self.layer = layer
        self.half_range = 2 ** (layer.grid.bits - 1)
        codes = layer.codes().float()
        lean = layer.grid.position(weight, layer.scale, layer.zero) - codes
        self.position = nn.Parameter(codes + lean.clamp(-LEAN, LEAN))
        self.keep_inside()
        self.stretch = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))
        self.shift = None if layer.zero is None else nn.Parameter(torch.zeros_like(self.stretch))

    def learned(self) -> list[nn.Parameter]:
        return [p for p in (self.position, self.stretch, self.shift) if p is not None]

    def scale(self) -> Tensor:
        return self.layer.scale.float() * (1 + self.stretch / self.half_range)

    def zero(self) -> Tensor | None:
        if self.layer.zero is None or self.shift is None:
            return None
        return self.layer.zero.float() + self.layer.scale.float() * self.shift / self.half_range

    def forward(self, x: Tensor) -> Tensor:
        grid = self.layer.grid
        weight = grid.dequantize(grid.round_through(self.position), self.scale(), self.zero())
        return functional.linear(x, weight.to(x.dtype), self.layer.bias)

    @torch.no_grad()
    def keep_inside(self) -> None:
        """Bring positions back into the grid's range: outside it no gradient ever would."""
        self.position.clamp_(self.layer.grid.low, self.layer.grid.high)

    @torch.no_grad()
    def settled(self) -> QuantLinear:
        """A `QuantLinear` of the integers and fp16 scales that the parameters have come to."""
        old, zero = self.layer, self.zero()
        new = QuantLinear(old.in_features, old.out_features, old.grid, old.bias)
        codes = old.grid.round_through(self.position).to(torch.int8)
        new.hold(codes, self.scale().half(), None if zero is None else zero.half())
        return new
