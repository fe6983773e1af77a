"""What methods that set weights to zero have in common: patterns, masks, and what becomes of the weights that are kept.

N:M patterns have exactly n weights in each group of m neighbours of a row: 2:4 is what sparse tensor cores multiply at
twice the rate. "unstructured" zeroes a fraction anywhere, which costs least and which nothing in this package is
faster for.

A zero must stay one, so weights that are rounded as well (`bits` below 16) go on a grid with a level at exactly zero:
grids with a minimum in each group have none.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant.grid import Grid

Pattern = Literal["2:4", "4:8", "unstructured"]


@dataclass(frozen=True)
class Sparse(Weights):
    """Weights of which a part is zero, and the others on a number grid or floats.

    Attributes:
        bits: bits of the weights that are kept; 16 leaves them in the model's float type, in an `nn.Linear`.
        pattern: how many of how many neighbours in a row are kept, or "unstructured".
        sparsity: fraction of zeros, 0 to below 1; half in the other patterns.
    """

    bits: Literal[2, 3, 4, 5, 6, 8, 16] = 16  # type: ignore[assignment]
    pattern: Pattern = "2:4"
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise QuantError(f"sparsity is a fraction from 0 to below 1, got {self.sparsity}; use 0.5 for one half")
        if self.group is not None and self.sparsity != 0.5:
            given = f"got sparsity={self.sparsity}; use pattern 'unstructured'"
            raise QuantError(f"pattern {self.pattern!r} zeroes one half, {given}")
        if self.bits == 16:
            return
        super().__post_init__()
        if not self.number_grid().symmetric:
            kind = f"with bits={self.bits}" if self.grid != "int" else "with symmetric=False"
            raise QuantError(f"grid {self.grid!r} {kind} has no level at zero; use grid 'int' with symmetric=True")

    @property
    def label(self) -> str:
        """The pattern, and the numbers: "2:4 sparse float", "60% sparse int4"."""
        part = f"{self.sparsity:.0%}" if self.group is None else self.pattern
        return f"{part} sparse {'float' if self.bits == 16 else super().label}"

    @property
    def group(self) -> int | None:
        """The m of n:m."""
        return None if self.pattern == "unstructured" else int(self.pattern[2:])

    def grids(self, model: nn.Module) -> dict[str, Grid]:
        """The grid of each linear of the blocks, by its name; none at 16 bits.

        Raises QuantError where rows are not whole groups of m.
        """
        from quant.anatomy import all_linears

        for name, linear in all_linears(model):
            if self.group is not None and linear.in_features % self.group:
                rows = f"rows of {linear.in_features} are no whole groups of {self.group}"
                raise QuantError(f"{name}: {rows}, as pattern {self.pattern!r} has; use pattern 'unstructured'")
        return {} if self.bits == 16 else super().grids(model)


def lowest(score: Tensor, count: int) -> Tensor:
    """Bool of score's shape: True at the `count` lowest along the last axis."""
    import torch

    chosen = score.topk(count, dim=-1, largest=False, sorted=False).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, chosen, True)


def dense(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """A copy of `linear` with weight float32 [N, K], in its type."""
    import torch

    copy = deepcopy(linear)
    with torch.no_grad():
        copy.weight.copy_(weight)
    return copy
