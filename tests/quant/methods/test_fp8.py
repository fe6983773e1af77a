"""FP8: E4M3 weights, and inputs of the kind that goes with them."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from quant import QuantError, quantize
from quant.activations import Activations
from quant.anatomy import all_linears
from quant.calibrate import Batch
from quant.linear import QuantLinear
from quant.methods.fp8 import FP8

KINDS = [
    (FP8(), Activations("e4m3", "token", True)),
    (FP8(group_size="tensor"), Activations("e4m3", "token", True)),
    (FP8(group_size="block"), Activations("e4m3", "group", True)),
    (FP8(activations="static"), Activations("e4m3", "tensor", False)),
    (FP8(group_size="block", activations=None), None),
]


@torch.no_grad()
def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[batch["loss_mask"]]


@pytest.mark.parametrize(("method", "inputs"), KINDS, ids=str)
def test_weights_and_inputs_are_rounded_as_asked(
    method: FP8, inputs: Activations | None, model: nn.Module, batches: list[Batch]
) -> None:
    before = {name: linear.weight.detach().clone() for name, linear in all_linears(model)}
    unquantized = logits(model, batches[0])
    quantize(model, method, batches)
    for name, weight in before.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantLinear) and layer.activations == inputs
        # Half a unit in the last of 3 places, or half the smallest subnormal of the largest step.
        slack = weight.abs().amax() / 448 * 2**-10
        assert ((layer.dequantize() - weight).abs() <= (weight.abs() * 2**-4).clamp(min=slack)).all()
    change = (logits(model, batches[0]) - unquantized).norm() / unquantized.norm()
    assert 0.01 < change < 0.2


def test_static_steps_are_of_the_inputs_that_quantized_layers_see(model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, FP8(activations="static"), batches)
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    peaks: list[torch.Tensor] = []
    mask = torch.empty(0)
    layer.register_forward_pre_hook(lambda module, args: peaks.append(args[0][mask.bool()].abs().max()))
    for batch in batches:
        mask = batch["attention_mask"]
        logits(model, batch)
    assert float(layer.input_scale) == pytest.approx(float(max(peaks)) / 448, rel=0.05)


def test_what_cannot_be_is_refused(original: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(QuantError, match="in blocks has no static activations; use activations='dynamic'"):
        FP8(group_size="block", activations="static")
    with pytest.raises(QuantError, match="grid 'fp' has 8 bits"):
        FP8(bits=4)  # type: ignore[arg-type]
    with pytest.raises(QuantError, match="fp8 has the grid 'fp', got 'int'"):
        FP8(grid="int")  # type: ignore[arg-type]
    copy = deepcopy(original)
    with pytest.raises(QuantError, match="fp8 with static activations needs calibration batches"):
        quantize(copy, FP8(activations="static"))
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), original.parameters(), strict=True))
