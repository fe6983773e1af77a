"""Wanda, against equation 1 of its paper written out row by row."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError, quantize
from quant.anatomy import all_linears
from quant.calibrate import Batch
from quant.linear import QuantLinear
from quant.methods.wanda import Wanda

SPECS = [
    Wanda(embedding_bits=16), Wanda(pattern="4:8", embedding_bits=16),
    Wanda(pattern="unstructured", sparsity=0.3, embedding_bits=16),
]  # fmt: skip
FIRST = "model.layers.0."  # the only block whose inputs are those of the original model


def follows_the_equation(kept: list[bool], weights: list[float], norms: list[float], spec: Wanda) -> bool:
    """Whether a row has as many zeros as asked for, in the places of the lowest scores, near ties aside."""
    score = [abs(w) * norm for w, norm in zip(weights, norms, strict=True)]
    group = int(spec.pattern[2:]) if spec.pattern != "unstructured" else len(score)
    for start in range(0, len(score), group):
        part = range(start, start + group)
        gone, left = [score[i] for i in part if not kept[i]], [score[i] for i in part if kept[i]]
        if len(gone) != int(group * spec.sparsity) or max(gone) > min(left) * (1 + 1e-5):
            return False
    return True


def input_norms(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}

    def note(name: str, mask: Tensor) -> Any:
        return lambda module, args: rows.setdefault(name, []).append(args[0][mask.bool()])

    for batch in batches:
        hooks = [m.register_forward_pre_hook(note(n, batch["attention_mask"])) for n, m in all_linears(model)]
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts).double().norm(dim=0) for name, parts in rows.items()}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.pattern)
def test_weights_of_the_lowest_score_in_their_row_or_group_are_zero_and_no_other_moves(
    spec: Wanda, original: nn.Module, model: nn.Module, batches: list[Batch]
) -> None:
    norms = input_norms(original, batches)
    quantize(model, spec, batches)
    for name, layer in all_linears(model):
        before = original.get_submodule(name).weight
        assert torch.equal(layer.weight, before * (layer.weight != 0))
        if name.startswith(FIRST):
            for kept, row in zip((layer.weight != 0).tolist(), before.double().tolist(), strict=True):
                assert follows_the_equation(kept, row, norms[name].tolist(), spec)


@pytest.mark.parametrize("bits", [4, 8])
def test_kept_weights_take_the_nearest_level_and_zeros_stay_zero(
    bits: Any, original: nn.Module, model: nn.Module, batches: list[Batch]
) -> None:
    spec = Wanda(bits=bits, embedding_bits=16)
    sparse = quantize(deepcopy(model), Wanda(embedding_bits=16), batches)
    quantize(model, spec, batches)
    name = f"{FIRST}mlp.down_proj"
    layer, before = model.get_submodule(name), original.get_submodule(name).weight
    assert isinstance(layer, QuantLinear)
    kept = sparse.get_submodule(name).weight != 0
    grid = spec.number_grid()
    scales = grid.find(before * kept)
    assert torch.equal(layer.dequantize(), grid.dequantize(grid.quantize(before * kept, scales), scales))
    assert not layer.dequantize()[~kept].any()


@pytest.mark.parametrize("grid", ["nf", "mx", "nv"])
def test_float_grids_have_a_zero_too(grid: Any, model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, Wanda(bits=4, grid=grid), batches)
    for _, layer in model.named_modules():
        if isinstance(layer, QuantLinear) and layer.grid.bits == 4:
            assert (layer.dequantize().unflatten(1, (-1, 4)) != 0).sum(-1).max() == 2


def test_what_was_asked_for_and_cannot_be_is_refused() -> None:
    def refused(said: str, **asked: Any) -> None:
        with pytest.raises(QuantError, match=said):
            Wanda(**asked)

    refused("pattern '2:4' zeroes one half, got sparsity=0.7; use pattern 'unstructured'", sparsity=0.7)
    refused("from 0 to below 1, got 1.0", sparsity=1.0, pattern="unstructured")
    refused("grid 'int' with symmetric=False has no level at zero", bits=4, symmetric=False)
    refused("grid 'k' with bits=4 has no level at zero", bits=4, grid="k")
    Wanda(bits=6, grid="k")  # K-quants of 3 and 6 bits are symmetric


def test_the_label_says_what_is_left() -> None:
    assert [spec.label for spec in (Wanda(), Wanda(bits=4), Wanda(pattern="unstructured", sparsity=0.6, bits=3))] == [
        "2:4 sparse float", "2:4 sparse int4", "60% sparse int3",
    ]  # fmt: skip


def test_a_row_that_is_no_whole_groups_is_refused_by_name(model: nn.Module, batches: list[Batch]) -> None:
    model.set_submodule("model.layers.1.mlp.down_proj", nn.Linear(94, 64, bias=False))
    with pytest.raises(QuantError, match=r"layers\.1\.mlp\.down_proj: rows of 94 are no whole groups of 4"):
        quantize(model, Wanda(), batches)
    with pytest.raises(QuantError, match="wanda needs calibration batches, got 0"):
        quantize(model, Wanda(pattern="unstructured"))
