"""RTN, round to nearest: each weight takes the nearest level of its group's grid. No data, no learning.

The yardstick every other method has to beat, and at 8 bits all that is needed (its KL there is within a few 1e-5 of
zero). What little there is to choose, the scale of a group, is chosen by `Grid.find`: by min-max, or by least squared
error over mild shrinks of it (`clip`, the default). Cost: one pass over the weights, times nine where it clips.

Tested against brute force over all levels of a grid, and against the reference quantizers of torchao and gguf-py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quant.methods.base import Grids, Weights

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.calibrate import Batch


@dataclass(frozen=True)
class RTN(Weights):
    """Round every weight to the nearest level; needs no calibration data.

    Attributes:
        name: which method this is.
        clip: search the scale of least squared error (True), or take it from min-max (False).
    """

    name: Literal["rtn"] = "rtn"
    clip: bool = True

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place; `batches` are not read."""
        from quant.calibrate import walk
        from quant.linear import QuantLinear

        grids = grids or self.grids(model)
        self.quantize_tables(model)
        done = 0
        for stage in walk(model, ()):
            for name, linear in stage.layers.items():
                stage.replace(name, QuantLinear.round(linear, grids[name], self.clip))
                done += 1
                progress(done, len(grids), name)
