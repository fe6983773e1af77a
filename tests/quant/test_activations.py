"""Rounded inputs: compressed-tensors' own arithmetic, bit for bit, and a layer that uses it."""

from copy import deepcopy

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from quant import QuantError
from quant.activations import Activations, calibrated
from quant.calibrate import Batch, walk
from quant.exports.compressed_layers import arguments
from quant.grid import IntGrid
from quant.linear import QuantLinear

DYNAMIC = [Activations(format, per, True) for format in ("int8", "e4m3") for per in ("token", "tensor", "group")]
STATIC = [Activations("int8", "tensor", False), Activations("e4m3", "tensor", False)]


def inputs(seed: int, columns: int = 256) -> torch.Tensor:
    """Channels of very different size, a token and a group of zeros."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, columns, generator=random) * torch.randn(columns, generator=random).mul(4).exp2()
    x[0, 1], x[1, 2, :128] = 0, 0
    return x


@given(seed=st.integers(0, 2**16), rounding=st.sampled_from(DYNAMIC))
def test_dynamic_steps_are_those_of_compressed_tensors(seed: int, rounding: Activations) -> None:
    x, described = inputs(seed), QuantizationArgs(**arguments(rounding))
    scale, zero = compute_dynamic_scales_and_zp(x, described, nn.Module())
    assert torch.equal(rounding.round(x), fake_quantize(x, scale, zero, described))
    if rounding.per == "token":
        assert torch.equal(rounding.scale(x.abs().amax(-1, keepdim=True)), scale)


@given(seed=st.integers(0, 2**16), rounding=st.sampled_from(STATIC), spread=st.floats(0.01, 3))
def test_static_steps_clip_as_compressed_tensors_does(seed: int, rounding: Activations, spread: float) -> None:
    x, described = inputs(seed), QuantizationArgs(**arguments(rounding))
    scale = rounding.scale(x.abs().amax().reshape(1) * spread)
    assert torch.equal(rounding.round(x, scale), fake_quantize(x, scale, torch.zeros(1), described))


@pytest.mark.parametrize("rounding", DYNAMIC, ids=str)
def test_rounding_is_close_and_keeps_zeros(rounding: Activations) -> None:
    x = torch.cat([inputs(0), torch.ones(2, 1, 256)], dim=1)[..., :200]  # a last group of 72
    rounded = rounding.round(x)
    assert torch.equal(rounded[x == 0], x[x == 0])
    if rounding.per == "token":
        peak = x.abs().amax(-1, keepdim=True)
        allowed = peak / 255 + 1e-6 if rounding.format == "int8" else (x.abs() / 16).maximum(peak / 448 * 2**-10)
        assert ((rounded - x).abs() <= allowed * 1.001).all()


def test_only_a_tensor_has_a_static_step() -> None:
    with pytest.raises(QuantError, match="per token have no static scale; use dynamic=True"):
        Activations("int8", "token", False)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 24)


@pytest.mark.parametrize("rounding", [*DYNAMIC, *STATIC], ids=str)
def test_a_layer_rounds_its_inputs_in_float32(linear: nn.Linear, rounding: Activations) -> None:
    x, step = inputs(1), None if rounding.dynamic else torch.tensor([0.03])
    layer = QuantLinear.round(linear, IntGrid(8), activations=rounding, input_scale=step)
    assert torch.equal(layer(x), functional.linear(rounding.round(x, step), layer.dequantize(), linear.bias))
    halved = deepcopy(layer).to(torch.bfloat16)
    exact = functional.linear(rounding.round(x.bfloat16(), step), layer.dequantize(), linear.bias.bfloat16().float())
    assert torch.equal(halved(x.bfloat16()), exact.bfloat16())


def test_a_state_dict_holds_the_static_step_and_float_types_do_not_touch_it(linear: nn.Linear) -> None:
    step = torch.tensor([0.0123])
    layer = QuantLinear.round(linear, IntGrid(8), activations=STATIC[0], input_scale=step)
    fresh = QuantLinear(256, 24, IntGrid(8), linear.bias, STATIC[0])
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(inputs(2)), layer(inputs(2)))
    moved = layer.to(torch.bfloat16).input_scale
    assert moved is not None and torch.equal(moved, step)
    assert "input_scale" not in QuantLinear.round(linear, IntGrid(8), activations=DYNAMIC[0]).state_dict()


def test_calibration_takes_the_largest_input_at_attended_positions(model: nn.Module, batches: list[Batch]) -> None:
    stage = next(walk(model, batches))
    seen: dict[str, float] = {}
    stage.observe(lambda name, rows: seen.update({name: max(seen.get(name, 0.0), float(rows.abs().max()))}))
    for name, scale in calibrated(stage, STATIC[0]).items():
        assert scale.shape == (1,) and float(scale) == pytest.approx(seen[name] / 127.5)
