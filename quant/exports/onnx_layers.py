"""Stand-ins for quantized layers in an ONNX graph: a forward that is ONNX Runtime's operator, buffers it reads.

With w = scale * code + low in groups, codes signed integers:

| weights                   | operator                                | integers                                  |
|---------------------------|-----------------------------------------|-------------------------------------------|
| 2 or 4 bits               | com.microsoft `MatMulNBits`             | blocks: uint8 [N, G, block * bits / 8]    |
| 8 bits                    | `DequantizeLinear`, `MatMul` (opset 21) | bytes: int8 [K, N]                        |
| embedding of 2 or 4 bits  | com.microsoft `GatherBlockQuantized`    | rows: uint8 [N, K * bits / 8]             |
| embedding of 8 bits       | `Gather`, `Cast`, `Mul`                 | rows: int8 [N, K]                         |

Scales are float32. Fewer bits than 8 are packed along K, low bits first, as code + 2^(bits-1): that is the operators'
zero point where none is given. A row with one scale gets blocks of 128 that repeat it, and a last block is filled up
with zeros. K-quants of 2 and 4 bits have their scales multiplied out. A head tied to the embedding shares its integers.

Minima are a product of their own, x w = x (scale code) + (sum of x over each group) low, 1/32 of the work: the operator
does take zero points that are no integers, but was 25 times slower with them.

Layers that round their inputs to int8 (`activations.py`) and have weights of 8 bits, a scale a row, get
`QuantizeLinear` and `DequantizeLinear` around a known step, which the runtime fuses into one product of integers, and
`MatMulInteger` on `unsigned`, the codes + 128, for a step that is read off the inputs. Other weights get the rounding
in plain operators.

Sources: onnx `docs/Operators.md`; ONNX Runtime `docs/ContribOperators.md` and what version 1.32 does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.errors import QuantError
from quant.kernels import Affine, affine
from quant.linear import QuantEmbedding, QuantLinear, QuantWeight

OPSET = 21
BLOCK = 128
BLOCKS = (16, 32, 64, 128, 256)
FAST = 4  # accuracy_level of MatMulNBits: inputs may be rounded to int8
STORED = ("blocks2", "blocks4", "bytes", "unsigned", "rows2", "rows4", "rows8")
WAY_OUT = "quantize differently, or export compressed_tensors"


def stand_in(name: str, layer: QuantLinear, table: Table | None) -> Linear:
    """What stands for a layer; its integers are those of `table`, where given. Raises QuantError naming the layer."""
    rounding = layer.activations
    if rounding is not None and rounding.format != "int8":
        raise QuantError(f"{name}: onnx holds inputs rounded to int8, not {rounding.format}; {WAY_OUT}")
    return (Bytes if layer.grid.bits == 8 else Blocks)(layer, _held(name, layer), table)


class Linear(nn.Module, ABC):
    """A linear layer; what multiplies by scale * code is a subclass's."""

    scale: Tensor
    low: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(self, layer: QuantLinear, held: Affine) -> None:
        super().__init__()
        self.rows, self.columns, self.width = layer.rows, layer.columns, layer.grid.width(layer.columns)
        self.activations = layer.activations
        self.register_buffer("low", None if held.low is None else held.low.T.contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.float())
        self.register_buffer("input_scale", None if layer.input_scale is None else layer.input_scale.reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.product(x)
        if self.low is not None:
            lacking = -self.columns % self.width
            y = y + functional.pad(x, (0, lacking)).unflatten(-1, (-1, self.width)).sum(-1) @ self.low
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs as the layer rounds them, and their product with scale * code."""
        if self.activations is not None:
            x = self.activations.round(x, self.input_scale)
        return x, self.weighted(x)

    @abstractmethod
    def weighted(self, x: Tensor) -> Tensor:
        """The product of x [..., K] with scale * code, float32 [..., N]."""


class Blocks(Linear):
    """2 or 4 bits."""

    def __init__(self, layer: QuantLinear, held: Affine, table: Table | None) -> None:
        super().__init__(layer, held)
        self.bits, self.block = layer.grid.bits, self.width if held.step.shape[1] > 1 else BLOCK
        blocks = -(-self.columns // self.block)
        self.register_buffer("scale", held.step.expand(-1, blocks).contiguous())
        self.__dict__["table"] = table if self.columns % self.block == 0 else None  # not a child: it has its own name
        if self.__dict__["table"] is None:
            codes = functional.pad(held.codes, (0, -self.columns % self.block))
            self.register_buffer(f"blocks{self.bits}", _pack(codes, self.bits).unflatten(1, (blocks, -1)))

    def weighted(self, x: Tensor) -> Tensor:
        table = self.__dict__["table"]
        blocks = getattr(self, f"blocks{self.bits}") if table is None else table.integers.view(*self.scale.shape, -1)
        size = {"K": self.columns, "N": self.rows, "bits": self.bits, "block_size": self.block}
        return _operator(
            "com.microsoft::MatMulNBits", (x, blocks, self.scale), size | {"accuracy_level": FAST}, torch.float32,
            (*x.shape[:-1], self.rows),
        )  # fmt: skip


class Bytes(Linear):
    """8 bits."""

    bytes: Tensor
    unsigned: Tensor

    def __init__(self, layer: QuantLinear, held: Affine, table: Table | None) -> None:
        super().__init__(layer, held)
        self.by_row = held.step.shape[1] == 1
        self.register_buffer("scale", held.step[:, 0] if self.by_row else held.step.T.contiguous())
        self.__dict__["table"] = table
        rounding = self.activations
        per_row = table is None and self.by_row
        self.multiplies = per_row and rounding is not None and rounding.dynamic and rounding.per != "group"
        if self.multiplies:
            self.register_buffer("unsigned", (held.codes.T.to(torch.int16) + 128).to(torch.uint8))
        elif table is None:
            self.register_buffer("bytes", held.codes.T.contiguous())

    @property
    def integers(self) -> Tensor:
        """int8 [K, N]."""
        table = self.__dict__["table"]
        return self.bytes if table is None else table.integers.T

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rounding = self.activations
        if rounding is not None and self.multiplies:
            step = rounding.step(x)
            levels = rounding.snap(x / step)
            # The runtime is ten times faster at unsigned inputs; on a CPU without VNNI their product with signed
            # weights saturates, in silence, so weights are unsigned, too.
            inputs, zero = (levels + 128).to(torch.uint8), torch.full((), 128, dtype=torch.uint8)
            shape = (*x.shape[:-1], self.rows)
            product = _operator("MatMulInteger", (inputs, self.unsigned, zero, zero), {}, torch.int32, shape)
            return levels * step, product.float() * step * self.scale
        # ONNX Runtime 1.32 fuses QuantizeLinear with weights in groups, too, and then fails.
        if rounding is None or rounding.dynamic or not self.by_row:
            return super().product(x)
        known = (self.input_scale, torch.zeros((), dtype=torch.int8))
        levels = _operator("QuantizeLinear", (x, *known), {}, torch.int8, x.shape)
        x = _operator("DequantizeLinear", (levels, *known), {}, torch.float32, x.shape)
        return x, self.weighted(x)

    def weighted(self, x: Tensor) -> Tensor:
        integers, groups = self.integers, {"axis": 1} if self.by_row else {"axis": 0, "block_size": self.width}
        return x @ _operator("DequantizeLinear", (integers, self.scale), groups, torch.float32, integers.shape)


class Table(nn.Module):
    """An embedding."""

    scale: Tensor
    low: Tensor | None

    def __init__(self, name: str, table: QuantEmbedding) -> None:
        super().__init__()
        held = _held(name, table)
        self.bits, self.columns, self.multiplier = table.grid.bits, table.columns, table.multiplier
        self.block = table.grid.width(table.columns) if held.step.shape[1] > 1 else BLOCK
        blocks = -(-self.columns // self.block)
        self.register_buffer(f"rows{self.bits}", held.codes if self.bits == 8 else _pack(held.codes, self.bits))
        self.register_buffer("scale", held.step.expand(-1, blocks).contiguous())
        self.register_buffer("low", None if held.low is None else held.low.expand(-1, blocks).contiguous())

    @property
    def integers(self) -> Tensor:
        return getattr(self, f"rows{self.bits}")

    def forward(self, ids: Tensor) -> Tensor:
        shape = (*ids.shape, self.columns)
        if self.bits == 8:
            rows = functional.embedding(ids, self.integers).float() * self._spread(
                functional.embedding(ids, self.scale)
            )
        else:
            how = {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
            inputs = (self.integers, ids, self.scale)
            rows = _operator("com.microsoft::GatherBlockQuantized", inputs, how, torch.float32, shape)
        if self.low is not None:
            rows = rows + self._spread(functional.embedding(ids, self.low))
        return rows if self.multiplier == 1 else rows * self.multiplier

    def _spread(self, values: Tensor) -> Tensor:
        """[b, t, blocks] -> [b, t, K]."""
        return values.unsqueeze(-1).expand(*values.shape, self.block).flatten(-2)[..., : self.columns]


def _held(name: str, weight: QuantWeight) -> Affine:
    """The stored integers of a layer. Raises QuantError naming it where no operator takes them."""
    held, grid = affine(weight), weight.grid
    if held is None or grid.bits not in (2, 4, 8):
        raise QuantError(f"{name}: onnx holds integers of 2, 4 or 8 bits, not {grid}; {WAY_OUT}")
    if held.step.shape[1] > 1 and grid.width(weight.columns) not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        raise QuantError(f"{name}: onnx holds groups of {known} weights, not {grid.group_size}; {WAY_OUT}")
    return held


def _pack(codes: Tensor, bits: int) -> Tensor:
    """int8 [N, K] in -2^(bits-1) .. 2^(bits-1)-1 -> uint8 [N, K * bits / 8], low bits first."""
    fields = (codes + 2 ** (bits - 1)).to(torch.uint8).unflatten(1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (fields << shifts).sum(-1, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [N, K * bits / 8] -> int8 [N, K]; the inverse of `_pack`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (packed.unsqueeze(-1) >> shifts & (2**bits - 1)).flatten(1).to(torch.int8) - 2 ** (bits - 1)


def dequantize(
    part: str, integers: Tensor, scale: Tensor, low: Tensor | None = None, columns: int | None = None
) -> Tensor:
    """The float32 weight [N, K] of a stand-in's buffers, of which `part`, one of `STORED`, holds the integers.

    `columns` is K where it cannot be told from them.
    """
    by_column = part in ("bytes", "unsigned")
    bits = 8 if by_column else int(part[-1])
    if by_column:
        integers = integers if part == "bytes" else integers.to(torch.int16) - 128
        codes, scale = integers.T, scale.reshape(-1, integers.shape[1]).T
    else:
        codes = integers if bits == 8 else _unpack(integers.flatten(1), bits)[:, :columns]
    if low is not None and not part.startswith("rows"):
        low = low.T
    weight = codes.float() * _over_groups(scale, codes.shape[1])
    return weight if low is None else weight + _over_groups(low, codes.shape[1])


def _over_groups(values: Tensor, columns: int) -> Tensor:
    """[N, G] -> [N, columns]."""
    groups = values.shape[1]
    width = columns if groups == 1 else next(block for block in BLOCKS if -(-columns // block) == groups)
    return values.repeat_interleave(width, 1)[:, :columns]


def _operator(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], dtype: torch.dtype, shape: Sequence[Any]
) -> Tensor:
    """An ONNX operator in the graph that is being traced."""
    version = 1 if "::" in name else OPSET
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape, version=version)
