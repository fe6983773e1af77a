"""The layers that hold integers: their arithmetic, and that nothing they hold changes on the way."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from quant.grid import Grid, IntGrid
from quant.linear import LatentLinear, QuantEmbedding, QuantLinear, unpacked

GRIDS = [IntGrid(4), IntGrid(4, symmetric=False), IntGrid(8), IntGrid(3, group_size=None), IntGrid(2, group_size=64)]


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 24)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_multiplies_by_what_the_integers_stand_for(linear: nn.Linear, grid: Grid) -> None:
    layer, x = QuantLinear.round(linear, grid), torch.randn(2, 3, 64)
    weight = grid.dequantize(layer.codes(), layer.scales)
    assert torch.equal(layer(x), functional.linear(x, weight, linear.bias))
    assert (weight - linear.weight).abs().max() < 2.2 * linear.weight.abs().max() / (grid.high - grid.low)


def test_unpacked_layers_say_the_same_and_forget_it_afterwards(linear: nn.Linear) -> None:
    layer, x = QuantLinear.round(linear, IntGrid(4)), torch.randn(2, 3, 64)
    before = layer(x)
    with unpacked(layer):
        assert torch.equal(layer(x), before)
        assert layer.dequantize() is layer.dequantize()
    layer.hold(torch.zeros_like(layer.codes()), layer.scales)
    assert torch.equal(layer(x), linear.bias.expand(2, 3, 24))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_state_dict_holds_all_of_it(linear: nn.Linear, grid: Grid) -> None:
    layer, fresh, x = QuantLinear.round(linear, grid), QuantLinear(64, 24, grid, linear.bias), torch.randn(5, 64)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_another_float_type_leaves_integers_and_scales(linear: nn.Linear, grid: Grid) -> None:
    layer = QuantLinear.round(linear, grid)
    moved = deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(moved.dequantize(), layer.dequantize())
    assert moved(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_an_embedding_looks_up_what_its_integers_stand_for() -> None:
    torch.manual_seed(0)
    table = torch.randn(50, 64)
    quantized = QuantEmbedding(50, 64, IntGrid(8), torch.float32)
    scales = IntGrid(8).find(table)
    quantized.hold(IntGrid(8).quantize(table, scales), scales)
    ids = torch.tensor([[3, 3, 49], [0, 7, 1]])
    assert torch.equal(quantized(ids), quantized.dequantize()[ids])
    assert quantized.to(torch.float16)(ids).dtype == torch.float16
    assert quantized.head().packed.data_ptr() == quantized.packed.data_ptr()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_layer_in_training_starts_and_settles_where_it_was(linear: nn.Linear, grid: Grid) -> None:
    layer, x = QuantLinear.round(linear, grid), torch.randn(5, 64)
    latent = LatentLinear(layer, linear.weight.detach())
    assert torch.equal(latent(x), layer(x))
    for key, tensor in latent.settled().state_dict().items():
        assert torch.equal(tensor, layer.state_dict()[key])


def test_the_gradient_of_a_scale_is_that_of_its_group(linear: nn.Linear) -> None:
    layer, x = QuantLinear.round(linear, IntGrid(4, symmetric=False)), torch.randn(5, 64)
    latent = LatentLinear(layer, linear.weight.detach())
    latent(x).square().sum().backward()
    output = 2 * layer(x)  # dL/dy
    by_weight = output.T @ x  # dL/dw [24, 64], and so dL/ds = sum of dL/dw (q - low)
    step = layer.scale.float()
    expected = (by_weight * (layer.codes().float() + 8)).unflatten(1, (2, 32)).sum(-1) * step / 8  # half of 16 levels
    assert latent.stretch.grad is not None and latent.shift is not None and latent.shift.grad is not None
    torch.testing.assert_close(latent.stretch.grad, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        latent.shift.grad, by_weight.unflatten(1, (2, 32)).sum(-1) * step / 8, rtol=1e-3, atol=1e-3
    )
