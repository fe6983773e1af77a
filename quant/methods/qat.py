"""QAT, quantization-aware training: learn the codes and scales by the distribution of the unquantized model.

Starting from GPTQ's codes, weights are trained with the rounding in the loop, on the loss of `quant.distillation`:

    w = s round(p)        dL/dp = dL/dw s  inside the grid's range        (straight-through)
                          dL/ds = sum over the group of dL/dw round(p)    (learned step size)

(Esser et al. 2020, LSQ, arXiv 1902.08153, equations 1 to 3, with the code's place p as the parameter instead of the
weight, so that s and p are independent and no gradient scale is needed.)

* Positions are in steps of the grid and start on GPTQ's codes, pulled a quarter of a step at most towards where the
  unquantized weight lies: weights that GPTQ nearly rounded the other way are the first to change their mind.
* Adam at one rate, falling to zero, for positions and scales in the units of `LatentLinear`; positions stay inside the
  range (outside, no gradient would ever bring them back). The default is the best over 2, 3, 4 and 8 bits; at twice
  the rate 2 and 3 bits end worse than they began. Few codes change at it: most of the gain is the scales'.
* With a `rank`, what moves a layer's positions is a product of two thin matrices (LoRA, Hu et al. 2021, arXiv
  2106.09685) added *before* the rounding: memory for the optimizer shrinks with the rank, and what is merged lies on
  the grid already. An adapter trained on top of rounded weights would have to be rounded again, and ruined, to merge.
* Left alone: embedding, head, norms and biases. Norms were tried: no gain beyond noise, and they would no longer be
  the student's own.

Cost: a forward and a backward pass of a batch a step and a forward pass of the unquantized model; three float32 for
each weight (Adam; with a rank, only for its factors). Tested: never worse than GPTQ on the held sequences, gradients
against the equations, merged = trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Grids, Weights
from quant.methods.gptq import GPTQ

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.calibrate import Batch


@dataclass(frozen=True)
class QAT(Weights):
    """GPTQ, then training with the rounding in the loop to match the unquantized model's distributions.

    Attributes:
        name: which method this is.
        steps: optimizer steps, each on one of the batches; 0 is GPTQ.
        learning_rate: peak rate of Adam, in steps of the grid.
        scales: learn them with the weights (LSQ), or keep GPTQ's (straight-through alone).
        rank: 0 trains every weight; above, a low-rank change of each layer.
        seed: of the order of the batches.
    """

    name: Literal["qat"] = "qat"
    steps: int = 48
    learning_rate: float = 0.015
    scales: Literal["learned", "fixed"] = "learned"
    rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or not 0 < self.learning_rate < 1 or self.rank < 0:
            given = f"steps={self.steps}, learning_rate={self.learning_rate} and rank={self.rank}"
            raise QuantError(f"qat got {given}; use 0 or more steps and rank and a rate above 0 and below 1")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating and training on `batches`."""
        from quant.anatomy import all_linears
        from quant.calibrate import require
        from quant.distillation import Learner, course, train
        from quant.linear import LatentLinear, QuantLinear

        require(batches, self.name)
        training = model.training
        model.eval()
        taught = course(model, batches)
        weights = {name: linear.weight.detach() for name, linear in all_linears(model)}
        total = len(weights) + self.steps
        start = GPTQ(**{shared.name: getattr(self, shared.name) for shared in fields(Weights)})
        start.apply(model, batches, lambda done, _, what: progress(done, total, what), grids)
        latents = {}
        for name, weight in weights.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantLinear)
            latents[name] = LatentLinear(layer, weight, rank=self.rank, scales=self.scales == "learned")

        def bound() -> None:
            for latent in latents.values():
                latent.keep_inside()

        learner = Learner(
            parameters=[p for latent in latents.values() for p in latent.learned()],
            training=latents,
            settled=lambda: {name: latent.settled() for name, latent in latents.items()},
            bound=bound,
        )
        train(
            model, learner, taught, self.steps, self.learning_rate, self.seed,
            lambda done, _, what: progress(len(weights) + done, total, what),
        )  # fmt: skip
        model.train(training)
