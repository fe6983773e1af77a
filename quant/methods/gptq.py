"""GPTQ: round one input column at a time, and let the columns not yet rounded make up for the error.

For an output row w and inputs with H = 2 X^T X, rounding column j to q_j leaves the least squared output error if the
remaining columns F move by

    w_F -= (w_j - q_j) / [H_F^-1]_jj * [H_F^-1]_j,F        (Frantar et al. 2022, arXiv 2210.17323, equation 2)

and with the order of columns the same for all rows, every [H_F^-1]_j,F that will be needed is a row of the upper
Cholesky factor U of H^-1 (ibid. section 3.3, algorithm 1): the update is w_F -= (w_j - q_j) / U_jj * U_j,F. Updates to
columns beyond the current block of 128 are gathered and applied as one matrix product.

* Columns go in the order of falling diag H ("act-order"), so that the ones that matter most are rounded while the
  most freedom is left. Groups stay where they are and get their scales from the untouched weights ("static groups"):
  the result is stored without a permutation, which no runtime layout could hold.
* H gets `damping` times its mean diagonal added; where the factorisation still fails, ten times more, up to 1.
* A dead column (never active in calibration) is rounded to nearest. The reference sets it to zero, which saves nothing
  and is wrong as soon as the feature fires in production.
* Rejected: scales weighted by diag H (worse: they and the error feedback fix the same thing twice); recomputing scales
  from the updated weights (needs groups in act-order to be contiguous).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from quant.errors import QuantError
from quant.methods.base import IntegerWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch
    from quant.grid import Grid

LAZY = 128


@dataclass(frozen=True)
class GPTQ(IntegerWeights):
    """Round column by column with error feedback, calibrated on data.

    Attributes:
        name: which method this is.
        damping: what is added to the Hessian's diagonal, as a fraction of its mean; above 0.
    """

    name: Literal["gptq"] = "gptq"
    damping: float = 0.01

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress) -> None:
        """Quantize `model` in place, calibrating on `batches`."""
        from quant.anatomy import all_linears, quantize_embedding
        from quant.calibrate import calibrate, require
        from quant.linear import QuantLinear

        require(batches, self.name)
        if self.embedding_bits == 8:
            quantize_embedding(model)
        grid = self.grid()

        def solve_layer(name: str, linear: nn.Linear, hessian: Tensor) -> nn.Module:
            solution = solve(linear.weight.detach().float(), hessian, grid, self.damping, name)
            return QuantLinear.of(linear, grid, solution.codes, solution.scale, solution.zero)

        calibrate(model, batches, solve_layer, progress, total=len(all_linears(model)))


class Solution(NamedTuple):
    """codes int8 [N, K], scale and zero float16 [N, G]."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


def solve(weight: Tensor, hessian: Tensor, grid: Grid, damping: float, name: str = "weight") -> Solution:
    """Integers for `weight` float32 [N, K] under `hessian` float32 [K, K] (not changed).

    Raises QuantError, naming the layer, if the Hessian cannot be factorised at any damping up to 1.
    """
    import torch

    columns = weight.shape[1]
    scale, zero = grid.find(weight)
    group = torch.arange(columns, device=weight.device) // (columns // scale.shape[1])
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order], damping, name)
    work = weight[:, order]
    places = list(zip(order.tolist(), group[order].tolist(), strict=True))
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, columns, LAZY):
        stop = min(start + LAZY, columns)
        errors = torch.zeros_like(work[:, start:stop])
        for i in range(start, stop):
            column, (at, of) = work[:, i : i + 1], places[i]
            step, offset = scale[:, of, None], None if zero is None else zero[:, of, None]
            code = grid.quantize(column, step, offset)
            codes[:, at] = code[:, 0]
            error = (column - grid.dequantize(code, step, offset)) / factor[i, i]
            work[:, i + 1 : stop] -= error * factor[i, i + 1 : stop]
            errors[:, i - start] = error[:, 0]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return Solution(codes, scale, zero)


def _inverse_factor(hessian: Tensor, damping: float, name: str) -> Tensor:
    """Upper triangular U float32 [K, K] with U^T U = (H + damping)^-1, factorised in float64."""
    import torch

    matrix = hessian.double()
    diagonal = matrix.diagonal()
    alive = diagonal != 0
    # A dead column has the damping alone on its diagonal and zeros beside it: it feeds nothing back.
    mean = diagonal[alive].mean() if alive.any() else diagonal.new_ones(())
    while damping <= 1:
        damped = matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) * damping * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and upper.isfinite().all():
                return upper.float()
        damping *= 10
    raise QuantError(f"{name}: calibration Hessian is singular at damping 1; pass more varied calibration batches")
