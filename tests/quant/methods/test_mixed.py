"""Mixed precision: the chosen bits against every possible choice, and budgets that are kept."""

from copy import deepcopy
from itertools import product
from random import Random
from typing import Any

import pytest
from torch import nn

from quant import QuantError, quantize
from quant.calibrate import Batch
from quant.linear import QuantLinear
from quant.methods import GPTQ, RTN, Mixed
from quant.methods.mixed import solve
from tests.quant.methods.measures import divergence

CHOICES = (2, 3, 4, 8)


def problem(seed: int) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Sensitivities and bytes of six layers of different sizes."""
    random = Random(seed)
    sizes = {f"layer {i}": random.randint(1, 20) for i in range(6)}
    costs = {name: {bits: size * bits for bits in CHOICES} for name, size in sizes.items()}
    harm = {name: {bits: random.random() * 4.0**-bits for bits in CHOICES} for name in sizes}
    return harm, costs  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    harm, costs = problem(seed)
    every = [dict(zip(costs, bits, strict=True)) for bits in product(CHOICES, repeat=len(costs))]
    total = lambda table, chosen: sum(table[name][bits] for name, bits in chosen.items())  # noqa: E731
    budget = 0.6 * sum(row[4] for row in costs.values()) + 0.4 * sum(row[2] for row in costs.values())
    best = min(total(harm, chosen) for chosen in every if total(costs, chosen) <= budget)
    chosen = solve(harm, costs, budget=budget)  # type: ignore[arg-type]
    assert total(costs, chosen) <= budget and total(harm, chosen) == pytest.approx(best)
    limit = sum(row[3] for row in harm.values())
    least = min(total(costs, chosen) for chosen in every if total(harm, chosen) <= limit)
    chosen = solve(harm, costs, max_kl=limit)  # type: ignore[arg-type]
    assert total(harm, chosen) <= limit * (1 + 1e-6) and total(costs, chosen) == pytest.approx(least)


def stored_bits(model: nn.Module) -> float:
    layers = [m for n, m in model.named_modules() if isinstance(m, QuantLinear) and n != "lm_head"]
    weights = sum(m.rows * m.columns for m in layers)
    return sum(m.grid.bits_per_weight(m.rows, m.columns) * m.rows * m.columns for m in layers) / weights


def test_a_byte_budget_is_kept_and_spent_better_than_evenly(original: nn.Module, batches: list[Batch]) -> None:
    even = quantize(deepcopy(original), RTN(bits=3), batches)
    mixed = quantize(deepcopy(original), Mixed(method=RTN(), bits_per_weight=3.5), batches)
    assert stored_bits(mixed) <= stored_bits(even) == 3.5
    bits = {name: m.grid.bits for name, m in mixed.named_modules() if isinstance(m, QuantLinear)}
    assert len(set(bits.values())) > 2
    for block in (0, 1):  # what vLLM fuses
        assert len({bits[f"model.layers.{block}.self_attn.{part}_proj"] for part in "qkv"}) == 1
        assert len({bits[f"model.layers.{block}.mlp.{part}_proj"] for part in ("gate", "up")}) == 1
    assert divergence(original, mixed, batches) < divergence(original, even, batches)


def test_a_plan_that_loses_to_the_same_bits_for_all_is_dropped(
    model: nn.Module, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def misleading(model: nn.Module, together: Any, *_: Any) -> Any:
        """As if down_proj alone mattered."""
        return {name: {b: (8 - b) * ("down_proj" in name) for b in (2, 3, 4, 5, 6, 8)} for name in together}

    monkeypatch.setattr("quant.methods.mixed.sensitivity", misleading)
    quantize(model, Mixed(method=RTN(), bits_per_weight=4.5), batches)
    assert {m.grid.bits for n, m in model.named_modules() if isinstance(m, QuantLinear) and "layers" in n} == {4}


def test_a_quality_budget_is_kept(original: nn.Module, batches: list[Batch]) -> None:
    limit = divergence(original, quantize(deepcopy(original), GPTQ(bits=4), batches), batches, held=True)
    mixed = quantize(deepcopy(original), Mixed(max_kl=limit), batches)
    assert divergence(original, mixed, batches, held=True) <= limit
    assert stored_bits(mixed) < 5


def test_budgets_that_cannot_be_are_refused(model: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(QuantError, match="bits_per_weight=None and max_kl=None; give one of them"):
        Mixed()
    with pytest.raises(QuantError, match=r"budget of .* bytes cannot be met, the least is .*; raise it"):
        quantize(model, Mixed(bits_per_weight=2.0), batches)
