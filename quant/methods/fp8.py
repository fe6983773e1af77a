"""FP8: weights, and on the way into each linear the inputs too, as 8-bit floats E4M3; no data, or one pass of it.

E4M3 has 4 bits of exponent and 3 of mantissa: +-(1 + m / 8) 2^(e - 7), subnormals down to 2^-9, largest 448, no
infinity (Micikevicius et al. 2022, arXiv 2209.05433, table 1). A group of weights, or of inputs, shares one step

    s = max|v| / 448,     v^ = s e4m3(v / s)                                             (section 3.1 there)

so the relative error is 2^-4 at most wherever |v| > 2^-6 s, 15 octaves below the largest; an integer of 8 bits has the
same absolute error everywhere. Floats therefore stand outliers, and are coarser where there are none.

| `group_size` | a weight step for          | inputs `dynamic`             | inputs `static`                |
|--------------|----------------------------|------------------------------|--------------------------------|
| None         | an output row              | a step for each token        | one, from the calibration data |
| "tensor"     | the matrix                 | a step for each token        | one                            |
| "block"      | 128 x 128 (DeepSeek-V3)    | one for 128 inputs of a token| there is none                  |

These are the combinations that vLLM has kernels for. With `activations` None only weights are rounded: half the bytes,
and the product in the model's own type. Nothing is searched: shrinking the range of a float format saves next to
nothing, as its small levels are fine anyway.

Measured, KL in nats a token (4.2 M seedling | 0.26 M Llama; static on 8192 tokens; embeddings left alone):

| `group_size` | weights alone | inputs dynamic | inputs static |
|--------------|---------------|----------------|---------------|
| None         | 0.022 | 0.024 | 0.049 | 0.040  | 0.058 | 0.041 |
| "tensor"     | 0.024 | 0.026 | 0.057 | 0.039  | 0.055 | 0.042 |
| "block"      | 0.025 | 0.026 | 0.047 | 0.038  |               |

To compare: 8-bit integers, a step a row, with int8 inputs per token 0.0076 | 0.0039 (static 0.24 | 0.03), 4-bit ones in
groups of 32 0.17 | 0.21. In models as small as these, without the outliers of large ones, integers are the better 8
bits; with floats a static step is about as good as a dynamic one. Half of the error is the weights', of which
`GPTQ(bits=8, grid="fp", group_size=None)` leaves a quarter to two thirds (0.005 | 0.017).

Tested against compressed-tensors' own arithmetic (`tests/quant/test_activations.py`) and on what it loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.errors import QuantError
from quant.methods.base import Grids, Weights

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.activations import Activations
    from quant.calibrate import Batch


@dataclass(frozen=True)
class FP8(Weights):
    """Weights and inputs as 8-bit floats; needs calibration data for static inputs only.

    Attributes:
        name: which method this is.
        activations: inputs with a step that is found at each call ("dynamic"), with one from the calibration data
            ("static"), or in the model's own type (None).
    """

    name: Literal["fp8"] = "fp8"
    bits: Literal[8] = 8
    grid: Literal["fp"] = "fp"
    group_size: Literal["tensor", "block"] | None = None
    activations: Literal["dynamic", "static"] | None = "dynamic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid != "fp":
            raise QuantError(f"fp8 has the grid 'fp', got {self.grid!r}; leave it out, or use rtn")
        if self.group_size == "block" and self.activations == "static":
            raise QuantError("fp8 in blocks has no static activations; use activations='dynamic'")

    def inputs(self) -> Activations | None:
        """How the inputs of each linear are rounded."""
        from quant.activations import Activations

        match self.activations:
            case "dynamic":
                return Activations("e4m3", "group" if self.group_size == "block" else "token", True)
            case "static":
                return Activations("e4m3", "tensor", False)
        return None

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place; `batches` are read for static activations only."""
        from quant.activations import calibrated
        from quant.calibrate import require, walk
        from quant.linear import QuantLinear

        grids, inputs = grids or self.grids(model), self.inputs()
        seen = batches if self.activations == "static" else ()
        if self.activations == "static":
            require(batches, "fp8 with static activations")
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, seen):
            steps = calibrated(stage, inputs) if seen and inputs is not None else {}
            for name, linear in stage.layers.items():
                layer = QuantLinear.round(linear, grids[name], activations=inputs, input_scale=steps.get(name))
                stage.replace(name, layer)
                done += 1
                progress(done, len(grids), name)
