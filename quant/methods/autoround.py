"""AutoRound: tune the rounding and the scales of one block at a time by the sign of the gradient.

A block sees the hidden states that the quantized blocks before it make; it should make of them what the unquantized
block made of the unquantized ones, Y. Its weights are w = s round(w/s + V), and

    min over V in [-1/2, 1/2] and s    ||Y - block(X')||^2        by   V -= lr sign(dL/dV),   s likewise

with lr falling linearly to 0 (Cheng et al. 2023, SignRound, arXiv 2309.05516, section 3, equations 3 to 5). The sign
makes the total way of each V, lr steps / 2, a choice: the default is half a step of the grid, which is what it takes to
round any weight the other way. The round is straight-through; the best state of `CHECKS` looks at all of the data wins,
the rounding to nearest it started from among them.

Scales move in the units of `LatentLinear`, so the same rate fits them; the paper tunes the ends of the range instead,
which on a symmetric grid is the same number. Rejected: Adam for this step (no better here, and twice the memory).

Cost: `steps` forward and backward passes of a block over a batch, for each block, so no more than one block's
activations are ever kept. Tested against its own start: a block's output error never rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Grids, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch, Stage
    from quant.linear import LatentLinear

CHECKS = 4


@dataclass(frozen=True)
class AutoRound(Weights):
    """Round to nearest, then tune rounding and scales block by block on data.

    Attributes:
        name: which method this is.
        steps: sign steps for each block, each on one of the batches; 0 is rounding to nearest.
        seed: of the order of the batches.
    """

    name: Literal["autoround"] = "autoround"
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise QuantError(f"autoround got steps={self.steps}; use 0 or more")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, tuning on `batches`."""
        from quant.calibrate import require, walk
        from quant.linear import LatentLinear, QuantLinear

        require(batches, self.name)
        grids = grids or self.grids(model)
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, batches, clean=True):
            layers = stage.layers
            latents = {
                name: LatentLinear(QuantLinear.round(linear, grids[name]), linear.weight.detach(), lean=0.5)
                for name, linear in layers.items()
            }
            tune_block(stage, latents, self.steps, self.seed)
            done += len(layers)
            progress(done, len(grids), stage.name)


def tune_block(stage: Stage, latents: Mapping[str, LatentLinear], steps: int, seed: int) -> float:
    """Leave the block's layers in their best settled state; the mean squared error of its output, relative to its size.

    Where `latents` start is among the states to choose from.
    """
    import torch

    targets = stage.targets()
    size = sum(float(target[run.mask].square().sum()) for run, target in zip(stage.runs, targets, strict=True))

    def put(layers: Mapping[str, nn.Module]) -> None:
        for name, layer in layers.items():
            stage.replace(name, layer)

    def error(i: int) -> Tensor:
        run = stage.runs[i]
        return (stage.forward(run, run.hidden) - targets[i])[run.mask].square().sum() / size

    @torch.no_grad()
    def exam() -> float:
        return sum(float(error(i)) for i in range(len(stage.runs)))

    best = {name: latent.layer for name, latent in latents.items()}
    put(best)
    least = exam()
    learned = [p for latent in latents.values() for p in latent.learned()]
    home = {name: latent.position.detach().clone() for name, latent in latents.items()}
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for step in range(1, steps + 1):
        queue = queue or torch.randperm(len(stage.runs), generator=order).tolist()
        put(latents)
        with torch.enable_grad():
            gradients = torch.autograd.grad(error(queue.pop()), learned)
        with torch.no_grad():
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter.sub_(gradient.sign() * (1 - (step - 1) / steps) / steps)
            for name, latent in latents.items():
                latent.position.copy_(latent.position.clamp(home[name] - 0.5, home[name] + 0.5))
                latent.keep_inside()
        if step * CHECKS // steps > (step - 1) * CHECKS // steps:
            settled = {name: latent.settled() for name, latent in latents.items()}
            put(settled)
            if (now := exam()) < least:
                best, least = settled, now
    put(best)
    return least
