"""SparseGPT, against optimal brain surgery with a fresh inverse for every column, and against what it should beat."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError, quantize
from quant.anatomy import all_linears
from quant.calibrate import Batch, Moments
from quant.grid import IntGrid
from quant.linear import QuantLinear
from quant.methods import GPTQ
from quant.methods.gptq import LAZY, Solution
from quant.methods.sparsegpt import SparseGPT
from quant.methods.wanda import Wanda
from tests.quant.methods.measures import divergence

COLUMNS = 160  # more than one block
SPECS = [
    SparseGPT(), SparseGPT(pattern="4:8", act_order=False), SparseGPT(pattern="unstructured", sparsity=0.6),
]  # fmt: skip


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(12, COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hessian() -> Tensor:
    """Of strongly correlated inputs, some of them loud."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(600, 40, generator=random) @ torch.randn(40, COLUMNS, generator=random)
    inputs += 0.5 * torch.randn(600, COLUMNS, generator=random)
    inputs *= 0.5 + torch.rand(COLUMNS, generator=random)
    return 2 * inputs.T @ inputs


def visits(hessian: Tensor, spec: SparseGPT) -> list[int]:
    """The order of columns: groups by mean activity, and by their own within a group."""
    activity = hessian.diagonal().tolist()
    size = 1 if spec.pattern == "unstructured" else int(spec.pattern[2:])
    groups = [list(range(i, i + size)) for i in range(0, COLUMNS, size)]
    if spec.act_order:
        groups.sort(key=lambda g: -sum(activity[j] for j in g))
        groups = [sorted(g, key=lambda j: -activity[j]) for g in groups]
    return [j for group in groups for j in group]


def naive(weight: Tensor, hessian: Tensor, spec: SparseGPT) -> Tensor:
    """Pruned weights float64, by one inverse a column."""
    h = hessian.double() + spec.damping * hessian.double().diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    order = visits(hessian, spec)
    inverses = [torch.linalg.inv(h[order[p:]][:, order[p:]]) for p in range(COLUMNS)]
    left = weight.double()[:, order]
    rise = torch.stack([inverse[0, 0] for inverse in inverses]).reciprocal()
    group = LAZY if spec.pattern == "unstructured" else int(spec.pattern[2:])
    limit = (left**2 * rise).flatten().sort().values[int(left.numel() * spec.sparsity)]
    shares = ((left**2 * rise) < limit).sum(0)
    for p in range(COLUMNS):
        if p % group == 0:
            score = left[:, p : p + group] ** 2 * rise[p : p + group]
            if spec.pattern == "unstructured":
                zeros = score < score.flatten().sort().values[int(shares[p : p + group].sum())]
            else:
                zeros = score.argsort(1).argsort(1) < group // 2
        lost = left[:, p] * zeros[:, p % group]
        left[:, p:] -= lost[:, None] / inverses[p][0, 0] * inverses[p][0]
        left[:, p] *= ~zeros[:, p % group]
    return left[:, torch.tensor(order).argsort()]


def output_error(weight: Tensor, other: Tensor, hessian: Tensor) -> float:
    off = (weight - other).double()
    return float(((off @ hessian.double()) * off).sum())


def prune(spec: SparseGPT, weight: Tensor, hessian: Tensor) -> Tensor:
    found = spec.solve(weight, Moments(hessian, None), None)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.pattern)
def test_the_weights_are_those_of_the_naive_algorithm(spec: SparseGPT, weight: Tensor, hessian: Tensor) -> None:
    ours, by_hand = prune(spec, weight, hessian), naive(weight, hessian, spec)
    assert torch.equal(ours == 0, by_hand == 0)
    torch.testing.assert_close(ours.double(), by_hand, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.pattern)
def test_correlated_inputs_make_it_better_than_magnitude_and_wanda(
    spec: SparseGPT, weight: Tensor, hessian: Tensor
) -> None:
    ours = output_error(weight, prune(spec, weight, hessian), hessian)
    wanda = Wanda(pattern=spec.pattern, sparsity=spec.sparsity)
    for score in (weight.abs(), weight.abs() * hessian.diagonal().sqrt()):
        assert ours < 0.5 * output_error(weight, weight.masked_fill(wanda.zeros(score), 0), hessian)


@pytest.mark.parametrize("act_order", [True, False])
def test_without_zeros_it_is_gptq(act_order: bool, weight: Tensor, hessian: Tensor) -> None:
    spec = SparseGPT(bits=3, pattern="unstructured", sparsity=0, act_order=act_order)
    ours = spec.solve(weight, Moments(hessian, None), IntGrid(3))
    theirs = GPTQ(act_order=act_order).solve([weight], Moments(hessian, None), IntGrid(3))[0]
    assert isinstance(ours, Solution)
    assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.scales.scale, theirs.scales.scale)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_every_group_has_exactly_n_weights(
    bits: Any, pattern: Any, model: nn.Module, original: nn.Module, batches: list[Batch]
) -> None:
    quantize(model, SparseGPT(bits=bits, pattern=pattern), batches)
    for name, _ in all_linears(original):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear if bits == 16 else QuantLinear)
        weight = layer.dequantize() if isinstance(layer, QuantLinear) else layer.weight
        left = (weight.unflatten(1, (-1, int(pattern[2:]))) != 0).sum(-1)
        if bits == 16:
            assert (left == int(pattern[0])).all()
        assert left.max() == int(pattern[0])  # a kept weight may round to zero


def test_an_unstructured_matrix_has_the_sparsity_asked_for(weight: Tensor, hessian: Tensor) -> None:
    pruned = prune(SparseGPT(pattern="unstructured", sparsity=0.7), weight, hessian)
    assert (pruned == 0).sum() == int(0.7 * weight.numel())


def test_rounding_in_the_same_pass_beats_rounding_afterwards(weight: Tensor, hessian: Tensor) -> None:
    grid = IntGrid(3)
    both = SparseGPT(bits=3).solve(weight, Moments(hessian, None), grid)
    assert isinstance(both, Solution)
    pruned = prune(SparseGPT(), weight, hessian)
    scales = grid.find(pruned)
    after = grid.dequantize(grid.quantize(pruned, scales), scales)
    assert output_error(weight, grid.dequantize(*both), hessian) < 0.9 * output_error(weight, after, hessian)


def test_the_model_says_more_of_the_same_than_after_wanda(original: nn.Module, batches: list[Batch]) -> None:
    kl = {
        method.name: divergence(original, quantize(deepcopy(original), method, batches[:2]), batches[2:])
        for method in (SparseGPT(), Wanda())
    }
    assert kl["sparsegpt"] < 0.8 * kl["wanda"]


def test_a_bias_and_the_float_type_stay(model: nn.Module, batches: list[Batch]) -> None:
    name = "model.layers.0.mlp.up_proj"
    old = nn.Linear(64, 96)
    model.set_submodule(name, old)
    quantize(model.bfloat16(), SparseGPT(), batches)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear) and torch.equal(layer.bias, old.bias)
    assert layer.weight.dtype == torch.bfloat16 and layer is not old


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(QuantError, match=r"sparsegpt got damping=0 and correction=0\.25"):
        SparseGPT(damping=0)
