"""AWQ: its errors against forward passes, its clipping against brute force, the model against rounding to nearest."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from quant import quantize
from quant.calibrate import Moments, Stage, walk
from quant.grid import SHRINKS, FloatGrid, Grid, IntGrid, KGrid
from quant.methods import AWQ, RTN
from quant.methods.awq import COARSE, EXPONENTS, clip_scales, search_scales
from quant.methods.base import Weights
from tests.quant.architectures import batches, build, distance, says
from tests.quant.methods.outliers import LOUD, plant

NORM, READERS = "input_layernorm", ("q_proj", "k_proj", "v_proj")


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """Correlated inputs of 64 channels, two of them loud."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(400, 24, generator=random) @ torch.randn(24, 64, generator=random)
    x[:, [7, 50]] *= 12
    return x + torch.randn(400, 64, generator=random)


def clipped(weight: Tensor, hessian: Tensor, grid: Grid, every: int = 1) -> Tensor:
    scales = clip_scales(weight, hessian, grid, every)
    return grid.dequantize(grid.quantize(weight, scales), scales)


def groupwise(weight: Tensor, rounded: Tensor, x: Tensor, width: int) -> Tensor:
    """Squared output error of each group of each row alone, [N, G]."""
    off = (rounded - weight).unflatten(1, (-1, width))
    return torch.einsum("ngi,tgi->ngt", off, x.unflatten(1, (-1, width))).square().sum(-1)


@pytest.mark.parametrize("grid", [IntGrid(3), IntGrid(4, symmetric=False), FloatGrid("nf4", 32, "fp16")], ids=str)
def test_each_group_gets_the_shrink_of_least_output_error(grid: Grid, inputs: Tensor) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    ours = groupwise(weight, clipped(weight, 2 * inputs.T @ inputs, grid), inputs, 32)
    tried = []
    for shrink in SHRINKS:
        scales = grid.store(grid.range(weight.unflatten(1, (-1, 32)), shrink))
        tried.append(groupwise(weight, grid.dequantize(grid.quantize(weight, scales), scales), inputs, 32))
    least = torch.stack(tried).amin(0)
    torch.testing.assert_close(ours, least, rtol=1e-3, atol=1e-3)
    assert ours.sum() < 0.9 * tried[0].sum()


@pytest.mark.parametrize(
    "grid", [IntGrid(2, group_size=None), IntGrid(4, group_size=48), KGrid(4), FloatGrid("e2m1", 16, "nv")], ids=str
)
def test_clipping_lowers_the_output_error_on_every_kind_of_grid(grid: Grid) -> None:
    random = torch.Generator().manual_seed(3)
    weight, x = torch.randn(8, 256, generator=random), torch.randn(300, 32, generator=random)
    x = x @ torch.randn(32, 256, generator=random)
    plain = grid.find(weight, clip=False)

    def error(rounded: Tensor) -> float:
        return float((x @ (rounded - weight).T).square().sum())

    nearest = error(grid.dequantize(grid.quantize(weight, plain), plain))
    assert error(clipped(weight, 2 * x.T @ x, grid)) < nearest


def first_stage(model: nn.Module) -> Stage:
    return next(walk(model, batches()))


def test_scales_are_the_power_of_the_activity_that_forward_passes_prefer() -> None:
    """Every exponent tried as the paper does: fold, round, run the linears, compare outputs."""
    model = plant(build("llama"), 8)
    grid = IntGrid(4)
    stage = first_stage(model)
    moments = stage.moments()
    norm = stage.block.get_parameter(f"{NORM}.weight")
    layers = {name: m for name, m in stage.layers.items() if name.endswith(READERS)}
    seen: list[Tensor] = []
    stage.observe(lambda name, rows: seen.append(rows) if name in list(layers)[:1] else None)
    x = torch.cat(seen)
    gain, before = norm.detach().clone(), {n: m.weight.detach().clone() for n, m in layers.items()}
    search_scales(stage, moments, dict.fromkeys(stage.layers, grid))
    chosen = gain / norm.detach()

    errors = []
    activity = x.square().mean(0).sqrt()
    candidates = [activity**exponent for exponent in EXPONENTS]
    for scales in candidates:
        rounded_error = 0.0
        for weight in before.values():
            rounded = clipped(weight * scales, 2 * (x / scales).T @ (x / scales), grid, COARSE)
            rounded_error += float(((x / scales) @ rounded.T - x @ weight.T).square().sum())
        errors.append(rounded_error)
    best = candidates[min(range(len(errors)), key=errors.__getitem__)]
    assert min(errors) < 0.8 * errors[0]
    torch.testing.assert_close(chosen / chosen[0], best / best[0], rtol=1e-3, atol=0)
    assert chosen[LOUD].min() > 1.5 * chosen.median()


def test_the_block_is_the_same_and_the_moments_are_those_of_its_new_inputs() -> None:
    model = build("gemma")
    wanted = says(model)

    def check(now: Mapping[str, Moments], seen: Mapping[str, Moments]) -> None:
        for name, moments in seen.items():
            for have, want in zip(now[name], moments, strict=True):
                if want is not None:
                    torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))

    for stage in walk(model, batches(), clean=True):
        stage.targets()
        now = search_scales(stage, stage.moments(), dict.fromkeys(stage.layers, IntGrid(3)))
        check(now, stage.moments())
    assert distance(model, wanted) < 1e-5


def test_a_channel_that_never_fired_keeps_its_weights() -> None:
    model = build("llama")
    stage = first_stage(model)
    norm = stage.block.get_parameter(f"{NORM}.weight")
    norm.data[9] = 0
    before = {n: m.weight.detach().clone() for n, m in stage.layers.items()}
    search_scales(stage, stage.moments(), dict.fromkeys(stage.layers, IntGrid(3)))
    for name, linear in stage.layers.items():
        assert linear.weight.isfinite().all()
        if name.endswith(READERS):
            grown = linear.weight[:, 9].norm() / before[name][:, 9].norm()
            assert 0.3 < grown < 3


@pytest.mark.parametrize("bits", [3, 4])
def test_it_beats_rounding_to_nearest_where_channels_are_loud(bits: int) -> None:
    def loud() -> nn.Module:
        return plant(build("llama", blocks=1), 32)

    wanted = says(loud())
    nearest, aware = (
        distance(quantize(loud(), method, batches()), wanted)
        for method in (RTN(bits=bits), AWQ(bits=bits))  # type: ignore[arg-type]
    )
    assert aware < 0.75 * nearest


@pytest.mark.parametrize(
    "spec", [
        {"bits": 2}, {"bits": 4, "symmetric": False}, {"bits": 4, "group_size": None}, {"grid": "nf"}, {"grid": "mx"},
        {"grid": "nv"}, {"grid": "fp", "bits": 8, "group_size": "block"},
    ], ids=str,
)  # fmt: skip
def test_it_works_on_every_grid(spec: dict[str, object]) -> None:
    model = build("llama", blocks=1)
    wanted = says(model)
    method = AWQ(**spec)  # type: ignore[arg-type]
    assert isinstance(method, Weights)
    nearest = distance(quantize(build("llama", blocks=1), RTN(**spec)), wanted)  # type: ignore[arg-type]
    assert distance(quantize(model, method, batches()), wanted) < 1.1 * nearest
