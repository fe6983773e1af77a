"""SmoothQuant: weights and activations on 8-bit integers, with the outliers of the activations moved into the weights.

8 bits hold weights without loss, but not activations: a few channels are many times larger than the rest, and one step
serves all channels of a token. Weights are even, so part of the magnitude can move over to them, channel by channel:

    s_j = max|x_j|^a / max|w_j|^(1 - a)        W x = (W diag(s)) (diag(1/s) x)

(Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, section 4, equation 4; w_j the column of all linears that read x).
At a = 1/2 both sides end up equally hard: each channel of both has the maximum sqrt(max|x_j| max|w_j|). Strength 0
leaves the model unscaled (equation 4 would still even out the weights), which is plain W8A8.

* Weights: int8, one scale an output row; inputs: int8, one step a token found at run time, or one for a layer found
  here (`activations.py`). What a kernel multiplies is integers; the scales go on the result.
* Scales are moved along every fold of `scaling.py`. The paper stops at the norms; up_proj -> down_proj evens out the
  input of down_proj, which holds the largest outliers of a gated MLP, and v_proj -> o_proj costs nothing either.
* A channel without activations or weights keeps its scale.
* `rounding="gptq"` rounds the smoothed weights with error feedback instead of to nearest.

| KL                        | dynamic, strength 0 | 0.5     | 0.5, gptq | static, 0 | 0.5    | 0.5, norms only |
|---------------------------|---------------------|---------|-----------|-----------|--------|-----------------|
| pretrained 0.9 M Llama    | 0.00175             | 0.00157 | 0.00126   | 0.0095    | 0.0046 | 0.0094          |
| pretrained 0.26 M Llama   | 0.00297             | 0.00290 | 0.00255   | 0.0206    | 0.0248 | 0.0246          |

(16 sequences of 256 tokens; int8 weights alone: 0.0005 and 0.0011.) Models this small have few outliers: with static
steps try strengths, with dynamic ones half is no worse than none.

Cost: one run of each block over the data (two with static steps or GPTQ), and three over one batch. Tested: the scales
against equation 4 by hand, the model unchanged until it is rounded, better than strength 0 where outliers are planted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Grids, Weights
from quant.methods.gptq import GPTQ

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.activations import Activations
    from quant.calibrate import Batch, Stage


@dataclass(frozen=True)
class SmoothQuant(Weights):
    """Weights and inputs as 8-bit integers, after evening out the inputs' channels; calibrated on data.

    Attributes:
        name: which method this is.
        strength: how much of the inputs' unevenness moves into the weights, 0 (none: plain W8A8) to 1 (all).
        activations: inputs with a step that is found for each token ("dynamic"), or with one for all ("static").
        rounding: weights to the nearest level, or with GPTQ's error feedback.
    """

    name: Literal["smoothquant"] = "smoothquant"
    bits: Literal[8] = 8
    grid: Literal["int"] = "int"
    group_size: None = None
    symmetric: Literal[True] = True
    strength: float = 0.5
    activations: Literal["dynamic", "static"] = "dynamic"
    rounding: Literal["rtn", "gptq"] = "rtn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits, self.grid, self.group_size, self.symmetric) != (8, "int", None, True):
            raise QuantError("smoothquant is int8 with a scale a row; leave bits, grid, group_size and symmetric out")
        if not 0 <= self.strength <= 1:
            raise QuantError(f"smoothquant got strength={self.strength}; use 0 to 1")

    def inputs(self) -> Activations:
        """How the inputs of each linear are rounded."""
        from quant.activations import Activations

        dynamic = self.activations == "dynamic"
        return Activations("int8", "token" if dynamic else "tensor", dynamic)

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating on `batches`."""
        from quant.activations import calibrated
        from quant.calibrate import require, walk
        from quant.linear import QuantLinear

        require(batches, self.name)
        grids, inputs, gptq = grids or self.grids(model), self.inputs(), GPTQ(bits=8, group_size=None, correction=0)
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, batches):
            if self.strength:
                smooth(stage, self.strength)
            steps = {} if inputs.dynamic else calibrated(stage, inputs)
            solved = dict(gptq.solutions(stage, grids)) if self.rounding == "gptq" else {}
            for name, linear in stage.layers.items():
                if name in solved:
                    layer = QuantLinear.of(linear, grids[name], *solved[name], inputs, steps.get(name))
                else:
                    layer = QuantLinear.round(linear, grids[name], activations=inputs, input_scale=steps.get(name))
                stage.replace(name, layer)
                done += 1
                progress(done, len(grids), name)


def smooth(stage: Stage, strength: float) -> None:
    """Scale the channels of the stage's block by equation 4; the block computes what it did."""
    import torch

    from quant.scaling import folds

    peaks: dict[str, Tensor] = {}

    def see(name: str, rows: Tensor) -> None:
        peak = rows.abs().amax(0).float()
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    stage.observe(see)
    for fold in folds(stage):
        inputs = fold.pool(peaks[next(iter(fold.readers))])  # the readers read one tensor
        columns = [reader.weight.detach().abs().amax(0).float() for reader in fold.readers.values()]
        weights = fold.pool(torch.stack(columns).amax(0))
        scales = inputs**strength / weights ** (1 - strength)
        fold.apply(torch.where((inputs > 0) & (weights > 0), scales, 1.0))
