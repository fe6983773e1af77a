"""Activations: a layer's inputs on 8 bits, so that a product can be made of integers or small floats alone.

Weights are rounded once, inputs at each call, with a step that is known beforehand (static) or read off them (dynamic):

    s = max|x| / r,     x^ = s * level(x / s)        r = 127.5 (int8: levels -128 .. 127),  448 (e4m3)

| `per`  | who shares a step                    | step               | goes with weights                    |
|--------|--------------------------------------|--------------------|--------------------------------------|
| token  | a row of inputs                      | dynamic            | of any grid                          |
| tensor | all inputs, of every call if static  | static or dynamic  | of any grid                          |
| group  | 128 neighbouring inputs of one token | dynamic            | in blocks of 128 x 128 (DeepSeek-V3) |

The formulas are compressed-tensors' (`calculate_qparams`, `_quantize_dequantize`), down to the 127.5: half of the
range -128 .. 127, so that the largest magnitude falls between two levels, and half a step off it where it is positive.
An input that is all zeros gets the smallest step that is not 0 and stays zeros. What transformers computes on an
exported model is therefore what is computed here, bit for bit in float32. vLLM's kernels divide by 127.

Everything is float32, whatever the type of the model, as a kernel's accumulator is: bfloat16 has no room for the
product of an 8-bit level and its step. A last group may be shorter here; compressed-tensors refuses one.

One step for all tokens saves a pass over the inputs, and with int8 costs dearly, as the token with the outlier coarsens
all others. KL, in nats a token, with int8 weights, a step a row (4.2 M seedling | 0.26 M Llama; weights alone 0.0020 |
0.0014; dynamic steps, the last column calibrated on 8192 tokens):

| inputs | per token       | per group       | per tensor      | per tensor, static |
|--------|-----------------|-----------------|-----------------|--------------------|
| int8   | 0.0076 | 0.0039 | 0.0057 | 0.0035 | 0.2290 | 0.0434 | 0.2430 | 0.0318    |

Floats hardly mind (`methods/fp8.py`): their precision is relative.

Sources: Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339) section 2; DeepSeek-AI 2024 (DeepSeek-V3, arXiv 2412.19437)
section 3.3; Micikevicius et al. 2022 (arXiv 2209.05433) section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from quant.errors import QuantError
from quant.grid import FloatGrid

if TYPE_CHECKING:
    from quant.calibrate import Stage

GROUP = 128


@dataclass(frozen=True)
class Activations:
    """How a layer's inputs are rounded.

    Attributes:
        format: int8, or the 8-bit float e4m3.
        per: who shares a step: the inputs of a token, all of them, or 128 neighbours of a token.
        dynamic: the step is read off the inputs at each call (True), or was calibrated (False; per tensor only).
    """

    format: Literal["int8", "e4m3"]
    per: Literal["token", "tensor", "group"]
    dynamic: bool

    def __post_init__(self) -> None:
        if not self.dynamic and self.per != "tensor":
            raise QuantError(f"activations per {self.per} have no static scale; use dynamic=True, or per='tensor'")

    @property
    def reach(self) -> float:
        """The largest magnitude, in steps: r above."""
        return 127.5 if self.format == "int8" else 448.0

    def scale(self, peak: Tensor) -> Tensor:
        """The step for inputs of these largest magnitudes, float32 of the same shape, never 0."""
        step = peak.float() / self.reach
        return torch.where(step == 0, torch.finfo(torch.float32).eps, step)

    def step(self, x: Tensor, static: Tensor | None = None) -> Tensor:
        """The step of each of the inputs x float32 [..., K], in a shape that spreads over x's."""
        if not self.dynamic:
            assert static is not None
            return static
        if self.per == "tensor":
            return self.scale(x.abs().max())  # torch's ONNX exporter has no amax of all
        if self.per == "token":
            return self.scale(x.abs().amax(-1, keepdim=True))
        grouped = functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        return self.scale(grouped.abs().amax(-1)).repeat_interleave(GROUP, -1)[..., : x.shape[-1]]

    def round(self, x: Tensor, static: Tensor | None = None) -> Tensor:
        """What levels and steps make of inputs x [..., K]: float32. A `static` step is float32 [1]."""
        x = x.float()
        step = self.step(x, static)
        return self.snap(x / step) * step

    def snap(self, position: Tensor) -> Tensor:
        """The nearest level of each real number, float32 of the same shape."""
        return FloatGrid("e4m3").snap(position) if self.format == "e4m3" else position.clamp(-128, 127).round()


def calibrated(stage: Stage, activations: Activations) -> dict[str, Tensor]:
    """The static scale float32 [1] of each layer of the stage: of the largest magnitude its inputs have."""
    peaks: dict[str, Tensor] = {}

    def see(name: str, rows: Tensor) -> None:
        peak = rows.abs().amax().float().reshape(1)
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    stage.observe(see)
    return {name: activations.scale(peak) for name, peak in peaks.items()}
