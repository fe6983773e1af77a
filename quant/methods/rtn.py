"""RTN, round to nearest: each weight takes the nearest level of its group's grid. No data, no learning.

The yardstick every other method has to beat, and at 8 bits all that is needed (its KL there is within a few 1e-5 of
zero). What little there is to choose, the scale of a group, is chosen by `Grid.find`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.methods.base import IntegerWeights

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.calibrate import Batch


@dataclass(frozen=True)
class RTN(IntegerWeights):
    """Round every weight to the nearest level; needs no calibration data.

    Attributes:
        name: which method this is.
    """

    name: Literal["rtn"] = "rtn"

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress) -> None:
        """Quantize `model` in place; `batches` are not read."""
        from quant.anatomy import all_linears, quantize_embedding
        from quant.linear import QuantLinear

        if self.embedding_bits == 8:
            quantize_embedding(model)
        layers = all_linears(model)
        for done, (name, linear) in enumerate(layers, start=1):
            model.set_submodule(name, QuantLinear.round(linear, self.grid()))
            progress(done, len(layers), name)
