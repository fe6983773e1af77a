"""GPTQ: round one input column at a time, and let the columns not yet rounded make up for the error.

For an output row w and inputs with H = 2 X^T X, rounding column j to q_j leaves the least squared output error if the
remaining columns F move by

    w_F -= (w_j - q_j) / [H_F^-1]_jj * [H_F^-1]_j,F        (Frantar et al. 2022, arXiv 2210.17323, equation 2)

and with the order of columns the same for all rows, every [H_F^-1]_j,F that will be needed is a row of the upper
Cholesky factor U of H^-1 (ibid. section 3.3, algorithm 1): the update is w_F -= (w_j - q_j) / U_jj * U_j,F. Updates to
columns beyond the current block of 128 are gathered and applied as one matrix product.

**Asymmetric correction (GPTAQ).** What enters a layer is no longer what entered it in the unquantized model: X' for X.
To keep W X, the columns not yet rounded also move by w_F += w_j P_j,F with P = a triu(D U^T, 1) U, D = 2 (X - X')^T X'
(Li et al. 2025, arXiv 2504.02692, section 4, algorithm 1; their code damps it by a = 0.25, as does the default here).

* `act_order`: columns go in the order of falling diag H, so that the ones that matter most are rounded while the most
  freedom is left. With static groups any column may be next: a group's scale is found beforehand from the untouched
  weights, and the result is stored without a permutation, which no runtime layout could hold.
* `groups="dynamic"` finds a group's scale when its first column is reached, from the weights as they then are. Groups
  stay whole: they are ordered by their mean diag H, and columns within a group by their own. Grids whose scales are
  stored together (K-quants, NVFP4) cannot.
* H gets `damping` times its mean diagonal added; where the factorisation still fails, ten times more, up to 1.
* A dead column (never active in calibration) is rounded to nearest. The reference sets it to zero, which saves nothing
  and is wrong as soon as the feature fires in production.
* Rejected: scales weighted by diag H (worse: they and the error feedback fix the same thing twice).

Cost: K^3 for the factor, N K^2 for the updates, one forward pass a block (two with the correction). Tested against
equation 2 written out with a fresh inverse for every column, and against GPTAQ's objective solved by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from quant.errors import QuantError
from quant.methods.base import Grids, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch, Moments, Stage
    from quant.grid import Grid, Scales

LAZY = 128


@dataclass(frozen=True)
class GPTQ(Weights):
    """Round column by column with error feedback, calibrated on data.

    Attributes:
        name: which method this is.
        damping: what is added to the Hessian's diagonal, as a fraction of its mean; above 0.
        act_order: round the most active inputs first.
        groups: scales from the untouched weights (static), or from the corrected ones as they are reached (dynamic).
        correction: how much of GPTAQ's correction for the drift of the inputs to apply, 0 to 1; 0 is plain GPTQ.
    """

    name: Literal["gptq"] = "gptq"
    damping: float = 0.01
    act_order: bool = True
    groups: Literal["static", "dynamic"] = "static"
    correction: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0 or not 0 <= self.correction <= 1:
            given = f"damping={self.damping} and correction={self.correction}"
            raise QuantError(f"gptq got {given}; use a damping above 0 and a correction from 0 to 1")
        if self.groups == "dynamic" and not (self.number_grid().local and self.number_grid().adjustable):
            raise QuantError(f"grid {self.grid!r} stores its scales together; use groups='static'")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating on `batches`."""
        from quant.calibrate import require, walk
        from quant.linear import QuantLinear

        require(batches, self.name)
        grids = grids or self.grids(model)
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, batches, clean=self.correction > 0):
            for name, solution in self.solutions(stage, grids):
                stage.replace(name, QuantLinear.of(stage.layers[name], grids[name], *solution))
                done += 1
                progress(done, len(grids), name)

    def solutions(self, stage: Stage, grids: Grids) -> Iterator[tuple[str, Solution]]:
        """Codes and scales for each layer of a block; those that read one tensor onto one grid are solved as one."""
        moments = stage.moments(drift=self.correction > 0)
        together: dict[tuple[int, Grid], list[str]] = {}
        for name, own in moments.items():
            together.setdefault((id(own), grids[name]), []).append(name)
        for (_, grid), names in together.items():
            weights = [stage.layers[name].weight.detach().float() for name in names]
            yield from zip(names, self.solve(weights, moments[names[0]], grid, names[0]), strict=True)

    def solve(self, weights: Sequence[Tensor], moments: Moments, grid: Grid, name: str = "weight") -> list[Solution]:
        """Codes for `weights`, each float32 [N, K], given the `moments` of the inputs they share (not changed).

        Raises QuantError, naming the layer, if the Hessian cannot be factorised at any damping up to 1.
        """
        import torch

        order = self._order(moments.hessian.diagonal(), grid.width(weights[0].shape[1]))
        factor = inverse_factor(moments.hessian[order][:, order], self.damping, name)
        drag = pull(moments, order, factor, self.correction)
        work = torch.cat(list(weights)).T[order].contiguous()  # [K, N]: a column to be rounded is contiguous
        rounding = Rounding(weights, grid, order)

        def settle(i: int) -> Tensor:
            if self.groups == "dynamic":
                rounding.renew(i, work)
            return rounding.loss(i, work[i])

        sweep(work, factor, drag, settle)
        return rounding.solutions()

    def _order(self, activity: Tensor, width: int) -> Tensor:
        """In which order to round the columns, Long [K]."""
        import torch

        if not self.act_order:
            return torch.arange(len(activity), device=activity.device)
        return by_activity(activity, width if self.groups == "dynamic" else 1)


class Solution(NamedTuple):
    """codes int8 [N, K] and their scales."""

    codes: Tensor
    scales: Scales


class Rounding:
    """The columns of `weights`, each float32 [N, K], on their way onto `grid`, one after another in `order` Long [K].

    A column is that of all weights, one under the other. The scales are those of the untouched weights, unless a
    group's are renewed.
    """

    def __init__(self, weights: Sequence[Tensor], grid: Grid, order: Tensor) -> None:
        import torch

        self.grid, self.order, self.width = grid, order, grid.width(weights[0].shape[1])
        self.rows = [len(weight) for weight in weights]
        self.scales = [grid.find(weight) for weight in weights]
        steps = [grid.steps(*found) for found in zip(self.scales, self.rows, strict=True)]
        self.step = torch.cat([own.step for own in steps]).T.contiguous()
        offsets = [own.offset for own in steps if own.offset is not None]
        self.offset = torch.cat(offsets).T.contiguous() if offsets else None
        self.levels = torch.empty(len(order), sum(self.rows), device=order.device)
        self.group = (order // self.width).tolist()
        self.renewed: dict[int, list[Scales]] = {}

    def loss(self, i: int, column: Tensor) -> Tensor:
        """Round `column` [N], the i-th in order, and return what that takes off it."""
        import torch

        step = self.step[self.group[i]]
        away = column if self.offset is None else column - self.offset[self.group[i]]
        position = torch.where(step == 0, 0.0, away / step)
        self.levels[i] = self.grid.snap(position)
        return away - self.levels[i] * step

    def renew(self, i: int, work: Tensor) -> None:
        """Find the scales of column i's group anew from `work` [K, N], in order, unless that was done."""
        import torch

        group = self.group[i]
        if group in self.renewed:
            return
        members = (self.order // self.width == group).nonzero().squeeze(1)
        parts = work[members].T.split(self.rows)
        self.renewed[group] = [self.grid.find(part) for part in parts]
        steps = [self.grid.steps(*found) for found in zip(self.renewed[group], self.rows, strict=True)]
        self.step[group] = torch.cat([own.step[:, 0] for own in steps])
        if self.offset is not None:
            self.offset[group] = torch.cat([own.offset[:, 0] for own in steps if own.offset is not None])

    def solutions(self) -> list[Solution]:
        """What became of each weight."""
        from quant.grid import Scales

        scales = self.scales
        if self.renewed:
            groups = [self.renewed[group] for group in range(len(self.renewed))]
            scales = [Scales.joined(own) for own in zip(*groups, strict=True)]
        codes = self.grid.encode(self.levels[self.order.argsort()].T.contiguous())
        return [Solution(*found) for found in zip(codes.split(self.rows), scales, strict=True)]


def sweep(work: Tensor, factor: Tensor, drag: Tensor | None, settle: Callable[[int], Tensor]) -> None:
    """Visit columns one after another, and let later ones make up for what each loses.

    Args:
        work: float32 [K, N], the columns in the order of the visits; each holds what it came to when it is visited.
        factor: U float32 [K, K] in that order.
        drag: P float32 [K, K] in that order.
        settle: called with i, decides what column i becomes and returns the difference [N].
    """
    import torch

    columns, pivots = len(work), factor.diagonal().tolist()
    for start in range(0, columns, LAZY):
        stop = min(start + LAZY, columns)
        errors, moved = torch.zeros_like(work[start:stop]), None if drag is None else work[start:stop].clone()
        for i in range(start, stop):
            error = settle(i) / pivots[i]
            work[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            errors[i - start] = error
            if drag is not None and moved is not None:
                moved[i - start] = work[i]
                work[i + 1 : stop].addr_(drag[i, i + 1 : stop], work[i])
        work[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        if drag is not None and moved is not None:
            work[stop:].addmm_(drag[start:stop, stop:].T, moved)


def by_activity(activity: Tensor, width: int) -> Tensor:
    """An order of columns Long [K]: groups of `width` by falling mean `activity` [K], as are columns inside a group."""
    import torch

    groups = list(torch.arange(len(activity), device=activity.device).split(width))
    groups.sort(key=lambda part: -float(activity[part].mean()))
    return torch.cat([part[activity[part].argsort(descending=True, stable=True)] for part in groups])


def pull(moments: Moments, order: Tensor, factor: Tensor, strength: float) -> Tensor | None:
    """P float32 [K, K]: how far each column, once reached, pulls later ones to make up for drifted inputs."""
    if moments.drift is None or not strength:
        return None
    drift = moments.drift[order][:, order]
    return strength * (drift @ factor.T).triu(1) @ factor


def inverse_factor(hessian: Tensor, damping: float, name: str) -> Tensor:
    """Upper triangular U float32 [K, K] with U^T U = (H + damping)^-1, factorised in float64."""
    import torch

    diagonal = hessian.diagonal().double()
    alive = diagonal != 0
    # A dead column has the damping alone on its diagonal and zeros beside it: it feeds nothing back.
    mean = diagonal[alive].mean() if alive.any() else diagonal.new_ones(())
    while damping <= 1:
        # At most two such matrices at a time: at K = 11008, the MLP of a 7B model, each is a gigabyte.
        matrix = hessian.to(torch.float64, copy=True)
        matrix.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            torch.cholesky_inverse(lower, out=matrix)
            del lower
            upper, failed = torch.linalg.cholesky_ex(matrix, upper=True)
            if not failed and upper.isfinite().all():
                return upper.float()
        damping *= 10
    raise QuantError(f"{name}: calibration Hessian is singular at damping 1; pass more varied calibration batches")
