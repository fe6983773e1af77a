"""Where the parts of a causal language model are: its decoder blocks, their linears, its embedding and head.

Known by shape, not by class name, so that this package needs no transformers: the blocks are the `ModuleList` that
holds the most parameters, the embedding and head are what the Hugging Face accessors return.
"""

from __future__ import annotations

import torch
from torch import nn

from quant.errors import QuantError
from quant.grid import Grid
from quant.linear import QuantEmbedding, QuantWeight

EMBEDDING_GRID = Grid(bits=8, symmetric=True, group_size=32)


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder blocks in order, by full name. Raises QuantError where there are none."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise QuantError(f"{type(model).__name__} has no list of decoder blocks; pass a causal language model")
    name, stack = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return [(f"{name}.{i}", block) for i, block in enumerate(stack)]


def linears(name: str, block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The `nn.Linear` layers of a block in the order of their definition, by full name."""
    return [(f"{name}.{child}", m) for child, m in block.named_modules() if isinstance(m, nn.Linear)]


def all_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Every `nn.Linear` inside the decoder blocks: what `quantize` replaces."""
    return [pair for name, block in blocks(model) for pair in linears(name, block)]


def embedding(model: nn.Module) -> nn.Module:
    """The token embedding: an `nn.Embedding` or a `QuantEmbedding`."""
    return model.get_input_embeddings()  # type: ignore[operator]


def head(model: nn.Module) -> nn.Module:
    """The output head: an `nn.Linear` or a `QuantLinear`."""
    return model.get_output_embeddings()  # type: ignore[operator]


def tied(model: nn.Module) -> bool:
    """Whether the head and the embedding are one matrix (also after a move to another device)."""
    top, bottom = head(model), embedding(model)
    if isinstance(top, QuantWeight) and isinstance(bottom, QuantWeight):
        return torch.equal(top.packed, bottom.packed) and torch.equal(top.scale, bottom.scale)
    return getattr(top, "weight", None) is getattr(bottom, "weight", 0)


def quantize_embedding(model: nn.Module) -> None:
    """Put the token embedding, and the head where it is tied to it, on an int8 grid in groups of 32."""
    table, was_tied = embedding(model), tied(model)
    assert isinstance(table, nn.Embedding)
    weight = table.weight.detach()
    scale, zero = EMBEDDING_GRID.find(weight)
    quantized = QuantEmbedding(table.num_embeddings, table.embedding_dim, EMBEDDING_GRID, weight.dtype)
    quantized.hold(EMBEDDING_GRID.quantize(weight, scale, zero), scale, zero)
    names = {module: name for name, module in model.named_modules()}
    if was_tied:
        model.set_submodule(names[head(model)], quantized.head())
    model.set_submodule(names[table], quantized)


def check(model: nn.Module, group_size: int | None, embedding_bits: int) -> None:
    """Refuse what cannot be quantized, before anything is changed. Raises QuantError naming the layer."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight):
            raise QuantError(f"{name} is already quantized to {module.grid.bits} bits; start from the original model")
    layers = all_linears(model)
    if not layers:
        raise QuantError(f"{type(model).__name__} has no nn.Linear in its blocks; merge adapters before quantizing")
    for name, linear in layers:
        if group_size and linear.in_features % group_size:
            limit = f"group_size {group_size} does not divide its {linear.in_features} inputs"
            raise QuantError(f"{name}: {limit}; use a divisor or group_size=None (one scale per output row)")
        if not linear.weight.isfinite().all():
            raise QuantError(f"{name}: weight holds NaN or Inf; repair or retrain the model")
    table = embedding(model).weight
    assert isinstance(table, torch.Tensor)
    if not table.isfinite().all():
        raise QuantError("token embedding holds NaN or Inf; repair or retrain the model")
    if embedding_bits == 8 and table.shape[1] % 32:
        limit = f"groups of 32 do not divide its width {table.shape[1]}"
        raise QuantError(f"token embedding: {limit}; use embedding_bits=16")
