"""Rotation: the matrix against SciPy's, the model against itself before it was rotated."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard as sylvester
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant import QuantError, quantize
from quant.anatomy import blocks, head, tied
from quant.methods import RTN
from quant.rotation import hadamard, rotate
from tests.quant.architectures import ROTATABLE, build, distance, says


@given(st.integers(1, 160))
def test_the_matrix_is_orthogonal_and_even_at_every_size(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    assert matrix.abs().max() <= (2 / size) ** 0.5 + 1e-12


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_at_powers_of_two_it_is_sylvester_s(size: int) -> None:
    torch.testing.assert_close(hadamard(size), torch.from_numpy(sylvester(size)).double() / size**0.5)


@pytest.mark.parametrize("name", ROTATABLE)
def test_a_rotated_model_says_what_it_said(name: str) -> None:
    model = build(name)
    wanted, before = says(model), deepcopy(model)
    rotate(model, seed=3)
    assert distance(model, wanted) < 1e-5
    for (_, now), (_, then) in zip(blocks(model), blocks(before), strict=True):
        old = dict(then.named_parameters())
        for part, parameter in now.named_parameters():
            if part.endswith("proj.weight"):
                assert (parameter - old[part]).norm() > 0.5 * old[part].norm(), part


def test_seeds_differ_and_repeat() -> None:
    one, again, other = (build("llama") for _ in range(3))
    rotate(one, seed=1)
    rotate(again, seed=1)
    rotate(other, seed=2)
    assert torch.equal(head(one).weight, head(again).weight)
    assert not torch.allclose(head(one).weight, head(other).weight)


@pytest.mark.parametrize("name", ["qwen2", "gemma"])
def test_a_tie_is_kept_where_the_last_gain_allows_it(name: str, tmp_path: Path) -> None:
    even, uneven = build(name), build(name)
    even.get_submodule("model.norm").weight.data.fill_(0.7)
    wanted = says(even)
    rotate(even)
    assert tied(even) and even.config.tie_word_embeddings and distance(even, wanted) < 1e-5

    wanted = says(uneven)
    rotate(uneven)
    assert not tied(uneven) and not uneven.config.tie_word_embeddings
    uneven.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not tied(loaded) and distance(loaded, wanted) < 1e-5
    uneven.tie_weights()  # as transformers does at its own convenience
    assert distance(uneven, wanted) < 1e-5


def refused(model: nn.Module, said: str) -> None:
    before, was_tied = deepcopy(model.state_dict()), tied(model)
    with pytest.raises(QuantError, match=said):
        rotate(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and tied(model) == was_tied


class Squashed(nn.Module):
    """An MLP that treats each channel of what it adds to the residual stream by itself."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).tanh()  # type: ignore[no-any-return]


def test_what_cannot_be_rotated_is_refused_and_left_as_it_was() -> None:
    refused(build("gemma3_text"), r"layers\.0\.post_attention_layernorm feeds something else than linears")
    refused(build("phi"), r"layers\.0\.input_layernorm subtracts a mean")
    refused(build("bert"), "subtracts a mean")
    refused(build("roberta"), "RobertaModel has no output head")
    refused(quantize(build("llama"), RTN()), "already quantized")
    elsewhere = build("llama")
    elsewhere.get_submodule("model.layers.1").to("meta")
    with pytest.raises(QuantError, match="not in memory as a whole"):
        rotate(elsewhere)
    for name in ("llama", "qwen2"):
        model = build(name)
        model.set_submodule("model.layers.1.mlp", Squashed(model.get_submodule("model.layers.1.mlp")))
        refused(model, "its logits are off by")
        assert model.config.tie_word_embeddings == (name == "qwen2")


def test_outliers_that_cost_a_group_its_step_are_spread() -> None:
    """Three channels of the residual stream are small, and the weights that read them are large."""
    model = build("llama")
    loud = [5, 20, 41]
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight[:, loud] /= 16
        for _, block in blocks(model):
            for name, linear in block.named_modules():
                if name.endswith(("o_proj", "down_proj")):
                    linear.weight[loud] /= 16
                elif isinstance(linear, nn.Linear):
                    linear.weight[:, loud] *= 16
    rotated, wanted = deepcopy(model), says(model)
    rotate(rotated)
    plain = distance(quantize(model, RTN(bits=4)), wanted)
    assert distance(quantize(rotated, RTN(bits=4)), wanted) < 0.7 * plain
