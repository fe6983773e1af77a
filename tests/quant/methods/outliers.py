"""Outliers, planted where language models have them: in a few channels of what the norms make."""

import torch
from torch import nn

from quant.anatomy import blocks

LOUD = [3, 17, 40]


@torch.no_grad()
def plant(model: nn.Module, times: float) -> nn.Module:
    """Make three channels behind each norm of a Llama `times` louder, and what reads them softer: the same function."""
    for _, block in blocks(model):
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            block.get_parameter(f"{norm}.weight")[LOUD] *= times
            for reader in readers:
                block.get_parameter(f"{reader}.weight")[:, LOUD] /= times
    return model
