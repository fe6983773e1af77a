"""GPTQ, against the same algorithm written from equation 2 with a fresh inverse for every column."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError, quantize
from quant.calibrate import Batch, Moments
from quant.grid import FloatGrid, Grid, IntGrid, Scales
from quant.methods import GPTQ, RTN
from quant.methods.gptq import Solution

GRIDS = [IntGrid(4), IntGrid(3, symmetric=False), IntGrid(2, group_size=None)]
COLUMNS = 160  # more than one block of lazy updates


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(12, COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hessian() -> Tensor:
    """Of strongly correlated inputs, as those of a language model are."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(600, 40, generator=random) @ torch.randn(40, COLUMNS, generator=random)
    inputs += 0.5 * torch.randn(600, COLUMNS, generator=random)
    return 2 * inputs.T @ inputs


def solve(weight: Tensor, hessian: Tensor, grid: Grid, damping: float, name: str = "weight") -> Solution:
    return GPTQ(damping=damping).solve([weight], Moments(hessian, None), grid, name)[0]


def naive(weight: Tensor, hessian: Tensor, grid: Grid, damping: float) -> Tensor:
    """Codes by optimal brain surgery, one column and one inverse at a time, in float64."""
    scale, zero, *_ = grid.find(weight)
    left, group = weight.double().clone(), COLUMNS // scale.shape[1]
    h = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    free = hessian.diagonal().argsort(descending=True).tolist()
    while free:
        j, inverse = free[0], torch.linalg.inv(h[free][:, free])
        own = Scales(scale[:, j // group, None], None if zero is None else zero[:, j // group, None])
        code = grid.quantize(left[:, [j]], own)
        codes[:, j] = code[:, 0]
        error = left[:, [j]] - grid.dequantize(code, own).double()
        left[:, free] -= error / inverse[0, 0] * inverse[0]
        free = free[1:]
    return codes


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    off = (weight - rounded).double()
    return float(((off @ hessian.double()) * off).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_integers_are_those_of_the_naive_algorithm(weight: Tensor, hessian: Tensor, grid: Grid) -> None:
    found = solve(weight, hessian, grid, damping=0.01)
    same = (found.codes == naive(weight, hessian, grid, damping=0.01)).float().mean()
    assert same > 0.995  # a tie broken the other way in float32 moves its neighbours


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_correlated_inputs_make_it_much_better_than_rounding(weight: Tensor, hessian: Tensor, grid: Grid) -> None:
    codes, scales = solve(weight, hessian, grid, damping=0.01)
    nearest = grid.dequantize(grid.quantize(weight, scales), scales)
    ours = output_error(weight, grid.dequantize(codes, scales), hessian)
    assert ours < 0.6 * output_error(weight, nearest, hessian)


@pytest.mark.parametrize("grid", [IntGrid(4), IntGrid(3, symmetric=False), FloatGrid("e2m1", 16, "nv")], ids=str)
@pytest.mark.parametrize("groups", ["static", "dynamic"])
def test_layers_solved_as_one_become_what_each_becomes_alone(
    weight: Tensor, hessian: Tensor, grid: Grid, groups: Any
) -> None:
    if groups == "dynamic" and not grid.local:
        pytest.skip("scales that are stored together are static")
    spec, parts, moments = GPTQ(groups=groups), weight.split([5, 7]), Moments(hessian, None)
    for own, (codes, scales) in zip(parts, spec.solve(parts, moments, grid), strict=True):
        alone = spec.solve([own], moments, grid)[0]
        assert (codes == alone.codes).float().mean() > 0.995  # sums of another order may break a tie the other way
        torch.testing.assert_close(grid.steps(scales, len(own)), grid.steps(alone.scales, len(own)))


def test_independent_inputs_leave_nothing_to_make_up_for(weight: Tensor) -> None:
    codes, scales = solve(weight, torch.eye(COLUMNS), IntGrid(4), damping=0.01)
    assert torch.equal(codes, IntGrid(4).quantize(weight, scales))


def test_a_dead_column_is_rounded_to_nearest(weight: Tensor, hessian: Tensor) -> None:
    dead = hessian.clone()
    dead[:, 7] = dead[7] = 0
    codes, scales = solve(weight, dead, IntGrid(4), damping=0.01)
    assert torch.equal(codes[:, 7], IntGrid(4).quantize(weight, scales)[:, 7])


def test_a_hessian_of_too_few_inputs_is_damped(weight: Tensor) -> None:
    one = torch.randn(1, COLUMNS, generator=torch.Generator().manual_seed(3))
    codes, scales = solve(weight, 2 * one.T @ one, IntGrid(4), damping=1e-9)
    nearest = IntGrid(4).dequantize(IntGrid(4).quantize(weight, scales), scales)
    assert ((weight - IntGrid(4).dequantize(codes, scales)) @ one.T).abs().sum() < (
        (weight - nearest) @ one.T
    ).abs().sum()


def test_a_hessian_without_a_factor_is_refused_by_name(weight: Tensor) -> None:
    with pytest.raises(QuantError, match=r"blk\.0: calibration Hessian is singular"):
        solve(weight, -torch.eye(COLUMNS), IntGrid(4), damping=0.01, name="blk.0")


def test_the_model_says_more_of_the_same_than_after_rounding(original: nn.Module, batches: list[Batch]) -> None:
    def divergence(method: RTN | GPTQ) -> float:
        quantized = quantize(deepcopy(original), method, batches[:2])
        with torch.no_grad():
            p, q = (
                m(**{k: batches[2][k] for k in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
                for m in (original, quantized)
            )
        return float((p.exp() * (p - q)).sum(-1)[batches[2]["attention_mask"].bool()].mean())

    assert divergence(GPTQ(bits=3)) < 0.8 * divergence(RTN(bits=3))
