"""What every method that rounds weights asks for, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from quant.described import described
from quant.errors import QuantError

if TYPE_CHECKING:
    from torch import nn

    from quant.grid import Grid

Bits = Literal[2, 3, 4, 5, 6, 8]
Family = Literal["int", "k", "nf", "mx", "nv", "fp"]
BITS_OF: dict[Family, tuple[int, ...]] = {
    "int": (2, 3, 4, 5, 6, 8), "k": (2, 3, 4, 5, 6), "nf": (4,), "mx": (4,), "nv": (4,), "fp": (8,),
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Weights on a number grid, in groups along the input.

    Attributes:
        bits: bits of each weight inside the blocks.
        grid: family of the grid: int; k (llama.cpp's K-quants, two-level scales); nf (NF4); mx (MXFP4); nv (NVFP4);
            fp (FP8 E4M3).
        group_size: weights that share a scale, of int, nf and fp; None for one scale an output row, "tensor" for one in
            all, "block" for 128 x 128. Q4_0 to Q8_0 of GGUF need 32. The other families bring their own.
        symmetric: a scale only (True), or a scale and a minimum in each group (False); of int.
        embedding_bits: bits of the token embedding and of a head tied to it, on an int grid in groups of 32 (a K-quant
            where `grid` is k and there is one); 16 leaves them as they are.
        head_bits: the same for a head of its own.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "json_schema_extra": described}

    bits: Bits = 4
    grid: Family = "int"
    group_size: Literal[16, 32, 64, 128, 256, "tensor", "block"] | None = 32
    symmetric: bool = True
    embedding_bits: Literal[2, 3, 4, 5, 6, 8, 16] = 8
    head_bits: Literal[2, 3, 4, 5, 6, 8, 16] = 16

    def __post_init__(self) -> None:
        if self.bits not in BITS_OF[self.grid]:
            known = " or ".join(map(str, BITS_OF[self.grid]))
            raise QuantError(f"grid {self.grid!r} has {known} bits, got bits={self.bits}; take those, or grid 'int'")
        if self.group_size == "block" and self.grid != "fp":
            raise QuantError(f"group_size 'block' is of grid 'fp', got grid {self.grid!r}; take a number or None")

    @property
    def label(self) -> str:
        """The numbers by their usual name: int4, Q4_K, NF4, MXFP4, NVFP4, FP8."""
        names = {"k": f"Q{self.bits}_K", "nf": "NF4", "mx": "MXFP4", "nv": "NVFP4", "fp": "FP8"}
        return names.get(self.grid, f"int{self.bits}")

    def number_grid(self) -> Grid:
        """The grid of the weights inside the blocks."""
        from quant.grid import FloatGrid, IntGrid, KGrid

        match self.grid:
            case "k":
                return KGrid(self.bits)
            case "nf":
                return FloatGrid("nf4", self.group_size, "fp16")
            case "mx":
                return FloatGrid("e2m1", 32, "mx")
            case "nv":
                return FloatGrid("e2m1", 16, "nv")
            case "fp":
                return FloatGrid("e4m3", self.group_size, "float32")
        return IntGrid(self.bits, self.symmetric, self.group_size)

    def grids(self, model: nn.Module) -> dict[str, Grid]:
        """The grid of each linear of the blocks, by its name."""
        from quant.anatomy import all_linears

        return dict.fromkeys((name for name, _ in all_linears(model)), self.number_grid())

    def table_grid(self, bits: int) -> Grid | None:
        """The grid of an embedding or head at `bits`, None where it stays as it is."""
        from quant.grid import IntGrid, KGrid

        if bits == 16:
            return None
        return KGrid(bits) if self.grid == "k" and bits in BITS_OF["k"] else IntGrid(bits, True, 32)

    def quantize_tables(self, model: nn.Module) -> None:
        """Put embedding and head on their grids, where asked."""
        from quant.anatomy import quantize_embedding, quantize_head

        if grid := self.table_grid(self.embedding_bits):
            quantize_embedding(model, grid)
        if grid := self.table_grid(self.head_bits):
            quantize_head(model, grid)


Grids = Mapping[str, "Grid"]
"""The grid of each linear of the blocks, by its name: a spec's own, or what `mixed` chose."""
