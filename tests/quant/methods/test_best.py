"""Best: each step lowers the KL or is left out, and the model stays one that any loader knows."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn

from quant import QuantError, quantize
from quant.calibrate import Batch
from quant.linear import QuantLinear
from quant.methods import GPTQ, Best
from tests.quant.methods.measures import divergence


def test_every_step_is_an_improvement_on_held_sequences(original: nn.Module, batches: list[Batch]) -> None:
    stages = [
        GPTQ(bits=2),
        Best(bits=2, block_steps=0, steps=0),
        Best(bits=2, block_steps=30, steps=0),
        Best(bits=2, block_steps=30, steps=30),
    ]
    reached = [
        divergence(original, quantize(deepcopy(original), method, batches), batches, held=True)  # type: ignore[arg-type]
        for method in stages
    ]
    assert all(after <= before + 1e-6 for before, after in pairwise(reached))
    assert reached[-1] < 0.6 * reached[0]


def test_a_planted_outlier_is_met_by_a_transform(original: nn.Module, batches: list[Batch]) -> None:
    """Channels of the residual stream a hundred times larger than the others, as large models grow them."""
    planted = deepcopy(original)
    with torch.no_grad():
        for block in planted.model.layers:  # type: ignore[union-attr]
            for norm, readers in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                norm.weight[5] /= 30
                for linear in readers:
                    linear.weight[:, 5] *= 30
    options = {"bits": 3, "group_size": None, "block_steps": 0, "steps": 0}
    plain, met = (
        divergence(planted, quantize(deepcopy(planted), Best(**options, transforms=t), batches), batches, held=True)  # type: ignore[arg-type]
        for t in ((), ("scale", "rotate"))
    )
    assert met < 0.8 * plain


def test_the_architecture_is_the_same(original: nn.Module, model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, Best(bits=4, block_steps=2, steps=2), batches)
    for name, module in original.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            assert type(model.get_submodule(name)) is type(module)
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 15 and not any(m.training for m in model.modules())


def test_senseless_steps_are_refused() -> None:
    with pytest.raises(QuantError, match="block_steps=-1"):
        Best(block_steps=-1)
