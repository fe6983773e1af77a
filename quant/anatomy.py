"""Where the parts of a causal language model are: its decoder blocks, their linears, its embedding and head.

Known by shape, not by class name, so that this package needs no transformers: the blocks are the `ModuleList` that
holds the most parameters, the embedding and head are what the Hugging Face accessors return.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from quant.errors import QuantError
from quant.grid import Grid
from quant.linear import QuantEmbedding, QuantLinear, QuantWeight


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


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The normalisations, by full name: modules with a weight a channel and no children."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and not isinstance(module, QuantWeight):
            found[name] = module
    return found


def become(model: nn.Module, other: nn.Module) -> None:
    """Make `model` what `other`, a changed copy of it, is."""
    model.__dict__.update(other.__dict__)


def embedding(model: nn.Module) -> nn.Module:
    """The token embedding: an `nn.Embedding` or a `QuantEmbedding`."""
    return model.get_input_embeddings()  # type: ignore[operator]


def head(model: nn.Module) -> nn.Module | None:
    """The output head: an `nn.Linear` or a `QuantLinear`; None where the model has none, as an encoder."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return found


def tied(model: nn.Module) -> bool:
    """Whether the head and the embedding are one matrix (also after a move to another device)."""
    top, bottom = head(model), embedding(model)
    if isinstance(top, QuantWeight) and isinstance(bottom, QuantWeight):
        return torch.equal(top.packed, bottom.packed) and torch.equal(top.scale, bottom.scale)
    return top is not None and getattr(top, "weight", None) is getattr(bottom, "weight", 0)


def quantize_embedding(model: nn.Module, grid: Grid) -> None:
    """Put the token embedding, and the head where it is tied to it, on `grid`."""
    table, top = embedding(model), head(model) if tied(model) else None
    assert isinstance(table, nn.Embedding)
    weight = table.weight.detach()
    scales = grid.find(weight)
    quantized = QuantEmbedding(table.num_embeddings, table.embedding_dim, grid, weight.dtype, _multiplier(table))
    quantized.hold(grid.quantize(weight, scales), scales)
    names = {module: name for name, module in model.named_modules()}
    if top is not None:
        model.set_submodule(names[top], quantized.head(getattr(top, "bias", None)))
    model.set_submodule(names[table], quantized)


def quantize_head(model: nn.Module, grid: Grid) -> None:
    """Put a head of its own on `grid`; one tied to the embedding follows the embedding."""
    top = head(model)
    if isinstance(top, nn.Linear) and not tied(model):
        names = {module: name for name, module in model.named_modules()}
        model.set_submodule(names[top], QuantLinear.round(top, grid))


def _multiplier(table: nn.Embedding) -> float:
    """What the embedding multiplies its rows by: Gemma's do."""
    return float(getattr(table, "embed_scale", 1.0))


def check(model: nn.Module, grids: Mapping[str, Grid]) -> None:
    """Refuse what cannot be quantized, before anything is changed. Raises QuantError naming the layer."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight):
            raise QuantError(f"{name} is already quantized to {module.grid.bits} bits; start from the original model")
    layers = all_linears(model)
    if not layers:
        raise QuantError(f"{type(model).__name__} has no nn.Linear in its blocks; merge adapters before quantizing")
    for name, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                experts = f"{name}.{part} holds {len(parameter)} experts in one tensor {list(parameter.shape)}"
                raise QuantError(f"{experts}, which would stay unquantized; only nn.Linear is quantized")
    for name, linear in layers:
        if linear.weight.is_meta:
            raise QuantError(f"{name}: weight is on the meta device, which holds no numbers; load the model first")
        if not linear.weight.isfinite().all():
            raise QuantError(f"{name}: weight holds NaN or Inf; repair or retrain the model")
        try:
            if name in grids:  # pruning alone puts none of them on a grid
                grids[name].groups(linear.in_features)
        except QuantError as problem:
            raise QuantError(f"{name}: {problem}; use grid 'int'") from problem
    table = embedding(model).weight
    assert isinstance(table, torch.Tensor)
    if not table.isfinite().all():
        raise QuantError("token embedding holds NaN or Inf; repair or retrain the model")
