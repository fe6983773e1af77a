"""QAT: never worse than where it starts, the same every time, and better where there is something to gain."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from quant import QuantError, quantize
from quant.calibrate import Batch
from quant.linear import QuantLinear
from quant.methods import GPTQ, QAT
from tests.quant.methods.measures import divergence


def held_numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Integers and scales by name."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    return {f"{n}.{part}": getattr(m, part) for n, m in layers.items() for part in ("packed", "scale")}


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_gains_on_gptq(original: nn.Module, batches: list[Batch], symmetric: bool) -> None:
    start = quantize(deepcopy(original), GPTQ(bits=3, symmetric=symmetric), batches)
    trained = quantize(deepcopy(original), QAT(bits=3, symmetric=symmetric, steps=24), batches)
    for held in (True, False):
        assert divergence(original, trained, batches, held) < 0.9 * divergence(original, start, batches, held)


@pytest.mark.parametrize("method", [QAT(bits=4, steps=4, learning_rate=0.9), QAT(bits=4, steps=0)], ids=str)
def test_a_rate_far_too_high_or_no_step_leaves_gptq(method: QAT, original: nn.Module, batches: list[Batch]) -> None:
    start = quantize(deepcopy(original), GPTQ(bits=4), batches)
    trained = quantize(deepcopy(original), method, batches)
    assert all(torch.equal(t, held_numbers(start)[name]) for name, t in held_numbers(trained).items())


def test_the_same_seed_gives_the_same_integers(original: nn.Module, batches: list[Batch]) -> None:
    first, second, other = (
        held_numbers(quantize(deepcopy(original), QAT(bits=3, steps=8, seed=seed), batches)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_only_weights_of_the_blocks_are_learned(original: nn.Module, model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, QAT(bits=3, steps=4), batches)
    before = dict(original.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_too_little_data_or_a_senseless_rate_is_refused(model: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(QuantError, match="training takes some sequences and measures on others, got 1"):
        quantize(model, QAT(), [{key: tensor[:1] for key, tensor in batches[0].items()}])
    for wrong in ({"steps": -1}, {"learning_rate": 0.0}, {"learning_rate": 1.5}):
        with pytest.raises(QuantError, match="above 0 and below 1"):
            QAT(**wrong)


def test_what_a_low_rank_change_learned_is_on_the_grid_when_it_is_merged(
    original: nn.Module, batches: list[Batch]
) -> None:
    start = quantize(deepcopy(original), GPTQ(bits=3), batches)
    trained = quantize(deepcopy(original), QAT(bits=3, steps=24, rank=16, scales="fixed"), batches)
    before, after = held_numbers(start), held_numbers(trained)
    assert any(not torch.equal(after[name], before[name]) for name in after if name.endswith("packed"))
    assert all(torch.equal(after[name], before[name]) for name in after if name.endswith("scale"))
    for held in (True, False):
        assert divergence(original, trained, batches, held) < divergence(original, start, batches, held)


@pytest.mark.parametrize("family", [{"grid": "fp", "bits": 8}, {"grid": "nf"}, {"grid": "mx"}], ids=str)
def test_it_learns_on_grids_that_are_not_integers(family: Any, original: nn.Module, batches: list[Batch]) -> None:
    start = quantize(deepcopy(original), GPTQ(**family), batches)
    trained = quantize(deepcopy(original), QAT(**family, steps=16), batches)
    assert divergence(original, trained, batches, held=True) <= divergence(original, start, batches, held=True) + 1e-9
