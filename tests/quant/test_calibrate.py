"""The walk through the blocks, against hooks on the whole model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError
from quant.anatomy import all_linears
from quant.calibrate import Batch, Moments, Stage, require, walk


def hessians(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """What a walk finds when every layer is left as it is."""
    return {n: m.hessian for stage in walk(model, batches) for n, m in stage.moments().items()}


def test_hessians_are_those_of_the_whole_model_without_its_padding(model: nn.Module, batches: list[Batch]) -> None:
    sums: dict[str, Tensor] = {}

    def note(name: str, mask: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            rows = args[0][mask.bool()].double()
            sums[name] = sums.get(name, 0) + 2 * rows.T @ rows

        return hook

    for batch in batches:
        assert not batch["attention_mask"].all()
        hooks = [m.register_forward_pre_hook(note(n, batch["attention_mask"])) for n, m in all_linears(model)]
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for hook in hooks:
            hook.remove()
    seen = hessians(model, batches)
    assert list(seen) == [name for name, _ in all_linears(model)]
    for name, hessian in seen.items():
        torch.testing.assert_close(hessian.double(), sums[name], rtol=1e-4, atol=1e-4 * float(sums[name].abs().max()))


def test_what_padding_holds_makes_no_difference(model: nn.Module, batches: list[Batch]) -> None:
    noisy = []
    for batch in batches:
        ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 17)
        noisy.append({**batch, "input_ids": ids})
    clean = hessians(model, batches)
    for name, hessian in hessians(model, noisy).items():
        torch.testing.assert_close(hessian, clean[name], rtol=1e-4, atol=1e-4 * float(clean[name].abs().max()))


def silence(stage: Stage) -> None:
    """Replace all linears by zeros: the block adds nothing."""
    for name, layer in stage.layers.items():
        silent = nn.Linear(layer.in_features, layer.out_features, bias=False)
        silent.weight.data.zero_()
        stage.replace(name, silent)


def test_later_blocks_see_the_errors_of_earlier_ones(model: nn.Module, batches: list[Batch]) -> None:
    clean, seen = hessians(model, batches), {}
    for stage in walk(model, batches):
        seen |= stage.moments()
        silence(stage)
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    assert torch.equal(seen[first].hessian, clean[first])
    assert not torch.allclose(seen[second].hessian, clean[second], rtol=0.1)


@torch.no_grad()
def test_the_drift_is_that_of_the_unquantized_model_s_inputs(
    original: nn.Module, model: nn.Module, batches: list[Batch]
) -> None:
    name = "model.layers.1.self_attn.v_proj"
    before = [[run.hidden for run in stage.runs] for stage in walk(original, batches)][1]
    found: dict[str, Moments] = {}
    for stage in walk(model, batches, clean=True):
        found |= stage.moments(drift=True)
        silence(stage)
    norm = original.get_submodule("model.layers.1.input_layernorm")
    embedded = original.get_input_embeddings()
    expected = torch.zeros(64, 64)
    for batch, clean in zip(batches, before, strict=True):
        mask = batch["attention_mask"].bool()
        x, drifted = norm(clean)[mask], norm(embedded(batch["input_ids"]))[mask]  # a silent block adds nothing
        expected += 2 * (x - drifted).T @ drifted
    torch.testing.assert_close(found[name].drift, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert found["model.layers.0.self_attn.v_proj"].drift is None


def test_the_mode_of_the_model_stays(model: nn.Module, batches: list[Batch]) -> None:
    model.train()
    hessians(model, batches)
    assert model.training


def test_activations_that_are_no_numbers_are_refused_by_name(model: nn.Module, batches: list[Batch]) -> None:
    model.get_submodule("model.layers.1.input_layernorm").weight.data[3] = float("nan")
    with pytest.raises(QuantError, match=r"model\.layers\.1\.self_attn\.q_proj: calibration activations hold NaN"):
        hessians(model, batches)


def test_batches_of_the_wrong_shape_are_refused(batches: list[Batch]) -> None:
    ids = batches[0]["input_ids"]
    for wrong, said in (
        ([], "needs calibration batches, got 0"),
        ([{"input_ids": ids}], "batch 0 needs input_ids and attention_mask"),
        ([{"input_ids": ids, "attention_mask": torch.ones(1, 2)}], "of one shape"),
        ([{"input_ids": ids, "attention_mask": torch.ones_like(ids), "loss_mask": torch.ones(1, 2)}], "loss_mask"),
        ([{"input_ids": ids, "attention_mask": torch.zeros_like(ids)}], "only padding"),
    ):
        with pytest.raises(QuantError, match=said):
            require(wrong, "gptq")
