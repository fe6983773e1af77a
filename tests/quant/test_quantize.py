"""`quant.quantize` and `quant.export` from outside: what is replaced, what stays, what is refused untouched."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from quant import QuantError, export, quantize
from quant.anatomy import embedding, head, tied
from quant.calibrate import Batch
from quant.grid import IntGrid
from quant.linear import QuantEmbedding, QuantLinear
from quant.methods import GPTQ, QAT, RTN, Method


@pytest.mark.parametrize("method", [RTN(), GPTQ(), QAT(steps=2)], ids=lambda m: m.name)
def test_every_method_leaves_the_same_container(method: Method, model: nn.Module, batches: list[Batch]) -> None:
    calls: list[tuple[int, int]] = []
    quantize(model, method, batches, progress=lambda done, total, what: calls.append((done, total)))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert len(layers) == 15  # seven in each of two blocks, and the head
    assert {m.grid for n, m in layers.items() if n != "lm_head"} == {method.number_grid()}
    assert all(m.scale.dtype == torch.float16 for m in layers.values())
    assert isinstance(embedding(model), QuantEmbedding) and tied(model)
    assert head(model).grid == IntGrid(8)
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


def test_an_embedding_of_16_bits_is_left_alone_and_tied(model: nn.Module) -> None:
    before = embedding(model)
    quantize(model, RTN(embedding_bits=16))
    assert embedding(model) is before and head(model).weight is before.weight


def test_what_cannot_be_quantized_is_refused_before_it_is_touched(original: nn.Module, batches: list[Batch]) -> None:
    def refused(model: nn.Module, method: Method, said: str) -> None:
        before = deepcopy(model.state_dict())
        with pytest.raises(QuantError, match=said):
            quantize(model, method, batches)
        assert all(torch.equal(t, before[n]) or t.isnan().any() for n, t in model.state_dict().items())

    refused(quantize(deepcopy(original), RTN()), GPTQ(), "embed_tokens is already quantized to 8 bits")
    refused(deepcopy(original), GPTQ(grid="k"), r"layers\.0\.self_attn\.q_proj: K-quants come in super-blocks of 256")
    broken = deepcopy(original)
    broken.get_submodule("model.layers.1.mlp.up_proj").weight.data[0, 0] = float("nan")
    refused(broken, RTN(), r"model\.layers\.1\.mlp\.up_proj: weight holds NaN")
    with pytest.raises(QuantError, match="gptq needs calibration batches, got 0"):
        quantize(deepcopy(original), GPTQ())
    with pytest.raises(QuantError, match="no list of decoder blocks"):
        quantize(nn.Linear(32, 32), RTN())


def test_experts_in_one_tensor_are_refused_rather_than_skipped() -> None:
    config = AutoConfig.for_model(
        "mixtral", vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    with pytest.raises(QuantError, match=r"layers\.0\.mlp\.experts\.gate_up_proj holds 4 experts in one tensor \[4, "):
        quantize(AutoModelForCausalLM.from_config(config), RTN())


def test_a_format_that_does_not_exist_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(QuantError, match="'ggml' does not exist; use one of compressed_tensors, gguf, onnx"):
        export(model, tmp_path, "ggml", tmp_path)  # type: ignore[arg-type]
