"""AWQ: scale up the inputs that carry the most, so that rounding to nearest errs on those that carry little.

A weight's rounding error is about the same for all weights of a group; what it does to the output grows with the input
it meets. Multiplying the columns of W that meet large inputs, and dividing the inputs, makes their relative error
smaller. For linears that read one tensor x, with the fold of `scaling.py`:

    s* = argmin over s  || Q(W diag(s)) (diag(1/s) x) - W x ||^2,    s = a^r,  a the magnitude of each channel of x

over a grid of 20 exponents r in [0, 1) (Lin et al. 2023, AWQ, arXiv 2306.00978, section 3.2, equations 4 and 5). r = 0
is no scaling, so no layer's error rises. Then each group's range is clipped, then weights are rounded to nearest.

**From H, without running anything.** With E = Q(W diag(s)) diag(1/s) - W the error over all calibration tokens is
tr(E H E^T) / 2, H = 2 X^T X, which the walk has anyway: the reference runs the block for every exponent instead. It
costs N K^2, so it is taken on `ROWS` rows of a linear at most; a row more or less says little about an s that all
rows share. a is the root mean square of the channel, which is in H, where the paper takes the mean magnitude.

**Clipping against H.** The error of one group alone is e H_gg e^T, and its range shrinks, to 0.8 at most, where that is
less: what AWQ's code does from samples of the inputs. `Grid.find` weighs squared errors by nothing, or by diag H; the
blocks of H know more, as inputs of a group are correlated, and on a model without outliers this is most of the gain.
The search for s clips, too, if with every `COARSE`-th shrink: exponents chosen without were worse than none at 3 bits.

| KL, a 4.2 M Llama of this project | 4 bits, groups of 128 | 4, 32     | 3, 128    | 2, 32    |
|-----------------------------------|-----------------------|-----------|-----------|----------|
| nearest                           | 0.246                 | 0.178     | 0.558     | 1.72     |
| clipped by diag H                 | 0.226                 | 0.168     | 0.577     | 1.72     |
| clipped by the blocks of H        | 0.187                 | **0.145** | 0.440     | 1.37     |
| and scaled: AWQ                   | **0.185**             | 0.148     | **0.437** | **1.22** |
| GPTQ, with correction             | 0.078                 | 0.053     | 0.213     | 0.57     |

(24 sequences of 256 tokens. A pretrained 0.9 M Llama: 0.107, 0.090, 0.467, 1.67 nearest, 0.082, 0.071, 0.331, 1.59
AWQ.) Clipped so, the static groups of GPTQ are better or worse (-20 % to +20 %): error feedback does the same work.

* All folds are used: norms, v_proj -> o_proj (heads that share a value share its scale), up_proj -> down_proj.
* A channel that was never active gets the mean magnitude of the others. At a = 0 its weights would round to zero.
* The result is a plain model. In bf16 or fp16 the scaled weights and gains are rounded to that type once more.
* Rejected: scales that also fall with the weights' own magnitude (s = a^r / w^(1 - r), as llm-compressor offers):
  within noise.

Cost: a run of the block over the data and three over one batch, and about as long again for the search. Tested: the
error is the one that forward passes give; clipping against brute force; planted outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.methods.base import Grids, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch, Moments, Stage
    from quant.grid import Grid, Scales
    from quant.scaling import Fold

EXPONENTS = tuple(i / 20 for i in range(20))
ROWS = 256
COARSE = 4


@dataclass(frozen=True)
class AWQ(Weights):
    """Scale the channels that matter, clip, round to nearest; calibrated on data.

    Attributes:
        name: which method this is.
    """

    name: Literal["awq"] = "awq"

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating on `batches`."""
        from quant.calibrate import require, walk
        from quant.linear import QuantLinear

        require(batches, self.name)
        grids = grids or self.grids(model)
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, batches):
            moments = search_scales(stage, stage.moments(), grids)
            for name, linear in stage.layers.items():
                weight, grid = linear.weight.detach().float(), grids[name]
                scales = clip_scales(weight, moments[name].hessian, grid)
                stage.replace(name, QuantLinear.of(linear, grid, grid.quantize(weight, scales), scales))
                done += 1
                progress(done, len(grids), name)


def search_scales(stage: Stage, moments: Mapping[str, Moments], grids: Grids) -> dict[str, Moments]:
    """Scale the channels of the stage's block, which computes what it did, for rounding to `grids`.

    Returns what `moments`, those of the block as it was, have become. Methods other than rounding may follow.
    """
    from quant.calibrate import Moments
    from quant.scaling import folds

    now = dict(moments)
    for fold in folds(stage):
        seen, drift = now[next(iter(fold.readers))]  # readers of one tensor share them
        scales = _best(fold, seen, grids)
        if scales is None:
            continue
        fold.apply(scales)
        columns = fold.spread(scales)
        both = columns * columns[:, None]
        scaled = Moments(seen / both, None if drift is None else drift / both)
        now |= dict.fromkeys(fold.readers, scaled)
    return now


def clip_scales(weight: Tensor, hessian: Tensor, grid: Grid, every: int = 1) -> Scales:
    """Scales whose ranges, shrunk for each group of each row, leave the least e H_gg e^T.

    Args:
        weight: float32 [N, K].
        hessian: float32 [K, K], 2 X^T X of the inputs.
        every: try every so many-th shrink only.
    """
    import torch
    from torch.nn import functional

    from quant.grid import SHRINKS, KGrid, Steps

    if grid.bits == 8 or grid.group_size in ("tensor", "block") or (isinstance(grid, KGrid) and every == 1):
        return grid.find(weight, hessian.diagonal())
    shrinks = SHRINKS if grid.adjustable else grid.shrinks
    columns, width = weight.shape[1], grid.width(weight.shape[1])
    lacking = grid.groups(columns) * width - columns
    groups = functional.pad(weight, (0, lacking), mode="replicate").unflatten(1, (-1, width))
    within = functional.pad(hessian, (0, lacking, 0, lacking)).unflatten(1, (-1, width)).unflatten(0, (-1, width))
    within = within.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [G, width, width]
    best, least = grid.range(groups, shrinks[0]), torch.full(groups.shape[:2], torch.inf, device=weight.device)
    for shrink in shrinks[::every]:
        tried = grid.range(groups, shrink)
        held = grid.steps(grid.store(tried), len(weight)) if grid.local else tried
        error = functional.pad(weight - grid.value(grid.snap(grid.position(weight, held)), held), (0, lacking))
        error = error.unflatten(1, (-1, width)).transpose(0, 1)
        cost = ((error @ within) * error).sum(-1).T
        better = cost < least
        least = torch.where(better, cost, least)
        step = torch.where(better, tried.step, best.step)
        both = tried.offset is not None and best.offset is not None
        best = Steps(step, torch.where(better, tried.offset, best.offset) if both else None)  # type: ignore[arg-type]
    return grid.store(best)


def _best(fold: Fold, hessian: Tensor, grids: Grids) -> Tensor | None:
    """The scales float32 [C] of least error, None where that is all ones."""
    import torch

    activity = fold.pool(hessian.diagonal()).sqrt()
    alive = activity > 0
    activity = torch.where(alive, activity, activity[alive].mean())
    samples = {name: _some_rows(reader.weight.detach()) for name, reader in fold.readers.items()}
    best, least = None, None
    for exponent in EXPONENTS:
        scales = activity**exponent
        scales = scales / scales.log().mean().exp()
        columns = fold.spread(scales)
        seen = hessian / (columns * columns[:, None])
        error = sum(_rounding_error(weight * columns, seen, grids[name]) for name, weight in samples.items())
        if least is None or error < least:
            best, least = (scales if exponent else None), error
    return best


def _some_rows(weight: Tensor) -> Tensor:
    """At most `ROWS` rows, evenly spaced, float32."""
    return weight[:: -(-len(weight) // ROWS)].float()


def _rounding_error(weight: Tensor, hessian: Tensor, grid: Grid) -> float:
    """tr(E H E^T) of rounding `weight` to nearest, clipped."""
    scales = clip_scales(weight, hessian, grid, COARSE)
    off = grid.dequantize(grid.quantize(weight, scales), scales) - weight
    return float(((off @ hessian) * off).sum())
