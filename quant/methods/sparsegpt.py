"""SparseGPT: zero weights one input column at a time, and let the columns not yet visited make up for the error.

GPTQ's sweep with another loss: a column that is visited loses w where it is pruned; w - round(w) where it is kept and
`bits` is below 16, so that pruning and rounding are one pass; else nothing. The columns after it move by GPTQ's rule
(Frantar & Alistarh 2023, SparseGPT, arXiv 2301.00774, algorithm 1, and its joint quantization).

What is pruned is decided late, when the sweep is about to enter a block: those of the lowest

    w^2 / U_jj^2         U the upper Cholesky factor of H^-1, so U_jj^2 is [H_F^-1]_jj among the columns F still free

which is the rise in output error were w set to zero and the others fitted again, for w as the columns
before have left it. An n:m block is the m columns of a group, and each row keeps n of them. An unstructured block is
128 columns with all rows, which may differ in what they lose; and so may blocks, here: how many zeros a block gets is
what it would have of the lowest in the whole matrix before anything has moved. The paper gives each block the same
part.

* Columns, or whole groups of n:m, are visited in the order of falling activity (`act_order`).
* Inputs have drifted, and GPTAQ's correction makes up for that as in `gptq.py`.
* Rejected: scales from the weights that a first look would keep (within noise).

Measured, half of the weights zero and the others float: KL in nats a token of a 4.2 M seedling / a 0.94 M Llama, models
much too small to spare half of themselves; calibrated on 128 x 256 tokens.

| pattern      | wanda       | sparsegpt   | act_order=False | correction=0 | the paper's equal parts |
|--------------|-------------|-------------|-----------------|--------------|-------------------------|
| 2:4          | 2.14 / 2.25 | 0.63 / 0.63 | 0.68 / 0.66     | 0.71 / 0.68  |                         |
| 4:8          | 1.39 / 1.92 | 0.52 / 0.49 | 0.51 / 0.52     | 0.55 / 0.55  |                         |
| unstructured | 0.94 / 1.26 | 0.33 / 0.41 | 0.34 / 0.39     | 0.36 / 0.44  | 0.39 / 0.41             |

Cost: that of GPTQ. Tested: without zeros it is GPTQ; with them, against optimal brain surgery written out with a fresh
inverse for every column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Grids
from quant.methods.gptq import LAZY, Rounding, Solution, by_activity, inverse_factor, pull, sweep
from quant.methods.sparse import Sparse, dense, lowest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch, Moments
    from quant.grid import Grid


@dataclass(frozen=True)
class SparseGPT(Sparse):
    """Zero weights column by column with error feedback, and round the others in the same pass, where asked.

    Attributes:
        name: which method this is.
        damping: what is added to the Hessian's diagonal, as a fraction of its mean; above 0.
        act_order: visit the most active inputs first.
        correction: how much of GPTAQ's correction for the drift of the inputs to apply, 0 to 1.
    """

    name: Literal["sparsegpt"] = "sparsegpt"
    damping: float = 0.01
    act_order: bool = True
    correction: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0 or not 0 <= self.correction <= 1:
            given = f"damping={self.damping} and correction={self.correction}"
            raise QuantError(f"sparsegpt got {given}; use a damping above 0 and a correction from 0 to 1")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Prune `model` in place, and quantize it below 16 bits, calibrating on `batches`."""
        from quant.anatomy import all_linears
        from quant.calibrate import require, walk
        from quant.linear import QuantLinear

        require(batches, self.name)
        grids = grids or self.grids(model)
        self.quantize_tables(model)
        done, total = 0, len(all_linears(model))
        for stage in walk(model, batches, clean=self.correction > 0):
            for name, moments in stage.moments(drift=self.correction > 0).items():
                linear = stage.layers[name]
                found = self.solve(linear.weight.detach().float(), moments, grids.get(name), name)
                if isinstance(found, Solution):
                    stage.replace(name, QuantLinear.of(linear, grids[name], *found))
                else:
                    stage.replace(name, dense(linear, found))
                done += 1
                progress(done, total, name)

    def solve(self, weight: Tensor, moments: Moments, grid: Grid | None, name: str = "weight") -> Solution | Tensor:
        """What becomes of `weight` float32 [N, K] given the `moments` of its inputs (not changed).

        Codes on `grid`, or, where that is None, weights float32 [N, K]. Raises QuantError, naming the layer, if the
        Hessian cannot be factorised at any damping up to 1.
        """
        import torch

        activity, block = moments.hessian.diagonal(), self.group or LAZY
        order = torch.arange(len(activity), device=activity.device)
        if self.act_order:
            order = by_activity(activity, self.group or 1)
        factor = inverse_factor(moments.hessian[order][:, order], self.damping, name)
        drag = pull(moments, order, factor, self.correction)
        work = weight.T[order].contiguous()  # [K, N]
        worth = factor.diagonal().square().reciprocal()[:, None]
        counts = self._counts(work.square() * worth)
        rounding = None if grid is None else Rounding([weight], grid, order)
        kept, zeros = torch.empty_like(work), torch.empty(0)

        def settle(i: int) -> Tensor:
            nonlocal zeros
            if i % block == 0:
                zeros = self._zeros(work[i : i + block].square() * worth[i : i + block], counts[i // block])
            kept[i] = work[i].masked_fill(zeros[i % block], 0)
            lost = work[i] - kept[i]
            return lost if rounding is None else lost + rounding.loss(i, kept[i])

        sweep(work, factor, drag, settle)
        return kept[order.argsort()].T.contiguous() if rounding is None else rounding.solutions()[0]

    def _counts(self, score: Tensor) -> list[int]:
        """How many zeros each unstructured block gets: its part of the lowest in score [K, N] before a weight moves."""
        if self.group is not None:
            return [score.shape[1] * self.group // 2] * (len(score) // self.group)
        first = self._zeros(score, int(score.numel() * self.sparsity))
        return [int(part.sum()) for part in first.split(LAZY)]

    def _zeros(self, score: Tensor, count: int) -> Tensor:
        """Bool [n, N]: half of each row's entries in an n:m group, and else the `count` lowest of all."""
        if self.group is None:
            return lowest(score.flatten(), count).view(score.shape)
        return lowest(score.T, self.group // 2).T
