"""AutoRound: better than rounding to nearest where it tunes, and never worse, block by block."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError, quantize
from quant.calibrate import Batch, Stage, walk
from quant.linear import LatentLinear, QuantLinear
from quant.methods import RTN, AutoRound
from quant.methods.autoround import tune_block
from tests.quant.methods.measures import divergence


@pytest.mark.parametrize("family", [{"bits": 3}, {"bits": 2, "symmetric": False}, {"grid": "nv"}], ids=str)
def test_tuning_says_more_of_the_same_than_rounding(family: dict, original: nn.Module, batches: list[Batch]) -> None:  # type: ignore[type-arg]
    rounded = quantize(deepcopy(original), RTN(**family), batches)
    tuned = quantize(deepcopy(original), AutoRound(**family, steps=60), batches)
    assert divergence(original, tuned, batches) < 0.7 * divergence(original, rounded, batches)


def test_no_steps_is_rounding_to_nearest(original: nn.Module, batches: list[Batch]) -> None:
    rounded = quantize(deepcopy(original), RTN(bits=4), batches)
    tuned = quantize(deepcopy(original), AutoRound(bits=4, steps=0), batches)
    assert all(torch.equal(t, rounded.state_dict()[name]) for name, t in tuned.state_dict().items())


def test_a_weight_moves_to_a_neighbouring_level_at_most(model: nn.Module, batches: list[Batch]) -> None:
    before = {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantize(model, AutoRound(bits=4, steps=40), batches)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear) and name != "lm_head":
            positions = layer.grid.position(before[name], RTN(bits=4).number_grid().steps(layer.scales, layer.rows))
            assert (positions.clamp(-8, 7) - layer.codes()).abs().max() < 2


def test_a_block_ends_no_worse_than_it_began(model: nn.Module, batches: list[Batch]) -> None:
    grid = RTN(bits=2).number_grid()
    for stage in walk(model, batches, clean=True):
        targets = stage.targets()
        latents = {
            name: LatentLinear(QuantLinear.round(linear, grid), linear.weight.detach(), lean=0.5)
            for name, linear in stage.layers.items()
        }

        def error(stage: Stage = stage, targets: list[Tensor] = targets) -> float:
            with torch.no_grad():
                off = [
                    (stage.forward(run, run.hidden) - target)[run.mask].square().sum()
                    for run, target in zip(stage.runs, targets, strict=True)
                ]
            return float(torch.stack(off).sum())

        for name, latent in latents.items():
            stage.replace(name, latent.layer)
        start = error()
        tune_block(stage, latents, steps=30, seed=0)
        assert error() < start


def test_steps_below_zero_are_refused() -> None:
    with pytest.raises(QuantError, match="steps=-1; use 0 or more"):
        AutoRound(steps=-1)
