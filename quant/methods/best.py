"""Best: every step that pays, in the order in which they build on each other, each kept only where it helps.

1. **Transform.** Unquantized weights can be changed without changing the model: scales moved between a norm and the
   linears that read it (`awq`'s search), or the residual stream and the heads' values rotated (`rotation`). Which of
   plain, scaled and rotated is best depends on the model (outliers want rotation; models this small often have none),
   so GPTQ runs on each and the lowest KL on held sequences wins. A rotation that would untie a tied head is left out.
2. **Layer by layer**: GPTQ with GPTAQ's correction.
3. **Block by block** (`block_steps`): rounding and scales tuned on the block's output, starting at GPTQ's codes.
4. **End to end** (`steps`): codes, scales and the gains of the norms, by KL to the unquantized model's distributions.

Steps 3 and 4 keep the best state on data they did not train on, their start included, so none can make it worse.

How far a code can go is rate x steps, and a low rate is the better half of it: on 0.94 M BabyLlama, from GPTQ, 768
steps at 0.0075 reach a KL 9 % (2 bits) and 7 % (3 bits) below that of 384 at 0.015; 1536 at 0.03 go astray at 2 bits,
and so do 1536 at 0.015 at 3. Rejected: half the batch for twice the steps (no gain at the same cost); a slower rate for
codes than for scales (2 bits end 22 % worse); matching the blocks' outputs as well (within noise); levels half a step
off zero at 2 bits, as in ParetoQ (Liu et al. 2025, arXiv 2502.02631: 3 % after all steps, and no runtime has them).

What each step buys is measured in `bench/quant.py`, and docs/quantization.md has the figures. Gains of norms are
float numbers that every format stores anyway: what is learned there is free.

Cost: up to three runs of GPTQ, then (blocks x block_steps) passes of a block and `steps` of the model, each with one
more of the unquantized model, and three float32 for each weight in step 4. Tested: never worse than GPTQ on held
sequences; the architecture stays standard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple

from quant.errors import QuantError
from quant.methods.base import Grids, Weights
from quant.methods.gptq import GPTQ

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.calibrate import Batch
    from quant.distillation import Course

Transform = Literal["scale", "rotate"]


@dataclass(frozen=True)
class Best(Weights):
    """Transform, GPTQ, block-wise and end-to-end tuning; each step is kept only where it lowers the KL.

    Attributes:
        name: which method this is.
        transforms: what may be tried on the unquantized weights; plain weights always are.
        block_steps: sign steps for each block; 0 leaves the step out.
        steps: end-to-end optimizer steps, each on one of the batches; 0 leaves the step out.
        learning_rate: peak rate of Adam end to end, in steps of the grid.
        seed: of the order of the batches and of the rotation's signs.
    """

    name: Literal["best"] = "best"
    transforms: tuple[Transform, ...] = ("scale", "rotate")
    block_steps: int = 100
    steps: int = 768
    learning_rate: float = 0.0075
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.block_steps, self.steps) < 0 or not 0 < self.learning_rate < 1:
            given = f"block_steps={self.block_steps}, steps={self.steps} and learning_rate={self.learning_rate}"
            raise QuantError(f"best got {given}; use 0 or more steps and a rate above 0 and below 1")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating and training on `batches`."""
        from quant.anatomy import become
        from quant.calibrate import require
        from quant.distillation import course

        require(batches, self.name)
        grids = grids or self.grids(model)
        training = model.training
        model.eval()
        taught = course(model, batches)
        rounds = 2 + len(self.transforms)
        total = len(grids) * rounds + self.steps
        start: _Start | None = None
        for turn, transform in enumerate((None, *self.transforms)):
            changed = self._transformed(model, transform, batches, grids)
            if changed is not None:
                reached = _shifted(progress, turn * len(grids), total)
                start = _better(start, changed, self._layer_wise(changed, batches, grids, reached, 0), taught)
        assert start is not None
        if self.block_steps:
            reached = _shifted(progress, (rounds - 1) * len(grids), total)
            tuned = self._layer_wise(start.changed, batches, grids, reached, self.block_steps)
            start = _better(start, start.changed, tuned, taught)
        become(model, start.quantized)
        if self.steps:
            self._end_to_end(model, start.changed, taught, _shifted(progress, total - self.steps, total))
        model.train(training)

    def _transformed(
        self, model: nn.Module, transform: Transform | None, batches: Sequence[Batch], grids: Grids
    ) -> nn.Module | None:
        """A copy of the model that computes the same, None where the architecture does not allow it."""
        from quant.anatomy import tied
        from quant.calibrate import walk
        from quant.methods.awq import search_scales
        from quant.rotation import rotate

        changed = deepcopy(model)
        if transform == "scale":
            for stage in walk(changed, batches):
                search_scales(stage, stage.moments(), grids)
        elif transform == "rotate":
            try:
                rotate(changed, self.seed)
            except QuantError:
                return None
            if tied(model) and not tied(changed):
                return None  # a second matrix of the vocabulary's size would cost more than a rotation wins
        return changed

    def _layer_wise(
        self, changed: nn.Module, batches: Sequence[Batch], grids: Grids, progress: Progress, block_steps: int
    ) -> nn.Module:
        """A copy quantized by GPTQ, each block tuned for `block_steps` before the next is reached."""
        from quant.calibrate import walk
        from quant.linear import LatentLinear, QuantLinear
        from quant.methods.autoround import tune_block

        quantized = deepcopy(changed)
        gptq = GPTQ(**{shared.name: getattr(self, shared.name) for shared in fields(Weights)})
        self.quantize_tables(quantized)
        done = 0
        for stage in walk(quantized, batches, clean=True):
            latents = {}
            for name, solution in gptq.solutions(stage, grids):
                linear = stage.layers[name]
                layer = QuantLinear.of(linear, grids[name], *solution)
                latents[name] = LatentLinear(layer, linear.weight.detach().float())
                done += 1
                progress(done, 0, name)
            if block_steps:
                tune_block(stage, latents, block_steps, self.seed)
            else:
                for name, latent in latents.items():
                    stage.replace(name, latent.layer)
        return quantized

    def _end_to_end(self, model: nn.Module, changed: nn.Module, taught: Course, progress: Progress) -> None:
        """Train codes, scales and gains of norms on the distributions of the unquantized model."""
        from quant.anatomy import all_linears, norms
        from quant.distillation import Learner, train
        from quant.linear import LatentLinear, QuantLinear

        latents = {}
        for name, linear in all_linears(changed):
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantLinear)
            latents[name] = LatentLinear(layer, linear.weight.detach())
        gains = norms(model)

        def settled() -> Mapping[str, nn.Module]:
            return {name: latent.settled() for name, latent in latents.items()} | deepcopy(gains)

        def bound() -> None:
            for latent in latents.values():
                latent.keep_inside()

        learner = Learner(
            parameters=[parameter for latent in latents.values() for parameter in latent.learned()],
            training={**latents, **gains}, settled=settled, bound=bound,
            gains=[parameter for norm in gains.values() for parameter in norm.parameters()],
        )  # fmt: skip
        train(model, learner, taught, self.steps, self.learning_rate, self.seed, progress)


class _Start(NamedTuple):
    """An unquantized model, what became of it, and its KL on the exam."""

    changed: nn.Module
    quantized: nn.Module
    kl: float


def _better(start: _Start | None, changed: nn.Module, quantized: nn.Module, taught: Course) -> _Start:
    """The one of lower KL; the earlier where they are equal."""
    from quant.distillation import measure

    found = _Start(changed, quantized, measure(quantized, taught.exam))
    return found if start is None or found.kl < start.kl else start


def _shifted(progress: Progress, by: int, total: int) -> Progress:
    """Progress of one part of the whole."""
    return lambda done, _, what: progress(by + done, total, what)
