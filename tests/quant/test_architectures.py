"""Quantization knows a model by its shape: here is what it makes of shapes other than the student's."""

import pytest
import torch
from torch import nn

from quant import quantize
from quant.anatomy import all_linears, embedding, head, tied
from quant.linear import QuantEmbedding, QuantLinear
from quant.methods import AWQ, GPTQ, RTN
from quant.rotation import rotate
from tests.quant.architectures import ARCHITECTURES, ROTATABLE, batches, build, distance, says

IN_BLOCKS = {"phi": 12, "phi3": 8, "modernbert": 8, "bert": 12, "roberta": 12}


@pytest.mark.parametrize("method", [RTN(bits=8), GPTQ(bits=8), AWQ(bits=8)], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_of_the_blocks_is_replaced_and_8_bits_change_little(name: str, method: RTN | GPTQ | AWQ) -> None:
    model = build(name)
    wanted, was_tied = says(model), tied(model)
    names = [layer for layer, _ in all_linears(model)]
    quantize(model, method, batches())
    assert len(names) == IN_BLOCKS.get(name, 14) and not all_linears(model)
    assert all(isinstance(model.get_submodule(layer), QuantLinear) for layer in names)
    assert isinstance(embedding(model), QuantEmbedding)
    assert tied(model) == was_tied == (name in ("qwen2", "gemma", "gemma3_text", "bert"))
    assert distance(model, wanted) < 0.03


@pytest.mark.parametrize("name", ["gemma3_text", "phi", "phi3", "bert", "modernbert"])
def test_fewer_bits_still_say_something_alike(name: str) -> None:
    model = build(name)
    wanted = says(model)
    nearest, fed_back = (quantize(build(name), m, batches()) for m in (RTN(bits=4), GPTQ(bits=4)))
    assert distance(fed_back, wanted) < distance(nearest, wanted) < 0.5


@pytest.mark.parametrize("name", ROTATABLE)
def test_a_rotated_model_is_quantized_as_any_other(name: str) -> None:
    model = build(name)
    wanted = says(model)
    rotate(model)
    quantize(model, GPTQ(bits=8), batches())
    assert distance(model, wanted) < 0.03


def test_an_embedding_that_multiplies_its_rows_goes_on_doing_so() -> None:
    ids = torch.arange(32)
    for name, factor in (("gemma", 8.0), ("gemma3_text", 8.0), ("llama", 1.0)):
        wanted = embedding(build(name))(ids).detach()
        table = embedding(quantize(build(name), RTN(embedding_bits=8)))
        assert isinstance(table, QuantEmbedding) and table.multiplier == factor
        torch.testing.assert_close(table(ids), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


def test_an_encoder_without_a_head_needs_none() -> None:
    for name in ("roberta", "modernbert"):
        model = quantize(build(name), GPTQ(bits=8, head_bits=8), batches())
        assert head(model) is None


def test_a_head_behind_other_layers_is_the_output_embedding() -> None:
    model = quantize(build("bert"), RTN(bits=8))
    top = head(model)
    assert isinstance(top, QuantLinear) and top.bias is not None
    transform = model.get_submodule("cls.predictions.transform.dense")
    assert isinstance(transform, nn.Linear)  # outside the blocks, and left alone
