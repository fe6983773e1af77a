"""What every weight-only integer method asks for, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from quant.grid import Grid


@dataclass(frozen=True)
class IntegerWeights:
    """Integer weights in groups along the input.

    Attributes:
        bits: bits of each weight inside the decoder blocks.
        group_size: weights that share a scale; None for one scale per output row. GGUF needs 32.
        symmetric: a scale only (True), or a scale and a minimum in each group (False).
        embedding_bits: 8 puts the token embedding and a head tied to it on an int8 grid, 16 leaves them as they are.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    bits: Literal[2, 3, 4, 8] = 4
    group_size: Literal[32, 64, 128] | None = 32
    symmetric: bool = True
    embedding_bits: Literal[8, 16] = 8

    def grid(self) -> Grid:
        from quant.grid import Grid

        return Grid(self.bits, self.symmetric, self.group_size)
