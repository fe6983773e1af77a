"""The parts of a plain decoder that can be cut out of it, and a model of the sizes that are left.

| unit      | what goes with it                                                                            |
|-----------|----------------------------------------------------------------------------------------------|
| block     | all of it                                                                                    |
| KV group  | rows of q, k and v, columns of o: a key-value head and the query heads that share it         |
| neuron    | rows of gate and up, a column of down                                                        |
| channel   | columns of q, k, v, gate, up and the head; rows of o and down; of all norms and the embedding |

Whole groups go, so that as many query heads share a key as before. What comes out is a model of the same class with
other numbers in its config, `head_dim` among them, which hidden size and heads no longer tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.anatomy import blocks, embedding, head, linears, norms, tied
from quant.errors import QuantError

READERS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
PARTS = (*READERS[0], *READERS[1], *WRITERS)
PLAIN = "pruning takes decoders of attention (q, k, v, o) and a gated MLP (gate, up, down)"


class Sizes(NamedTuple):
    """Of a decoder, by the names of its config; `num_key_value_heads` is the number of its KV groups."""

    num_hidden_layers: int
    num_key_value_heads: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    hidden_size: int

    @property
    def shared(self) -> int:
        """Query heads that share a key."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def group(self) -> int:
        """Inputs of o_proj that belong to one KV group."""
        return self.shared * self.head_dim


def sizes_of(model: nn.Module) -> Sizes:
    """The sizes of a plain decoder. Raises QuantError naming what it has, or lacks, that makes it another kind."""
    kind, stack, table, top = type(model).__name__, blocks(model), embedding(model), head(model)
    if not isinstance(table, nn.Embedding) or not isinstance(top, nn.Linear):
        raise QuantError(f"{kind} has no embedding and output head of plain weights; {PLAIN}")
    for name, block in stack:
        found = {full.removeprefix(f"{name}.") for full, _ in linears(name, block)}
        if missing := [part for part in PARTS if part not in found]:
            raise QuantError(f"{kind}: {name} has no {missing[0]}; {PLAIN}")
        if more := sorted(found - {*PARTS}):
            raise QuantError(f"{kind}: {name} also has {more[0]}, which would not be cut; {PLAIN}")
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or (table.embedding_dim // heads if heads else 0)
    said = Sizes(*(width if name == "head_dim" else getattr(config, name, 0) for name in Sizes._fields))
    for name, block in stack:
        rows: list[Any] = [block.get_submodule(part).out_features for part in PARTS]
        q, k, _, gate, *_ = rows
        is_so = Sizes(len(stack), k // (width or 1), q // (width or 1), width, gate, table.embedding_dim)
        for field, value, true in zip(Sizes._fields, said, is_so, strict=True):
            if value != true:
                raise QuantError(f"{kind}: config.{field} is {value}, and {name} has {true}; {PLAIN}")
    return said


@torch.no_grad()
def cut(layer: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Leave a linear, embedding or norm, in place, with some of its outputs (rows) or inputs, long [n] in order."""
    for name, parameter in layer.named_parameters(recurse=False):
        kept = parameter if rows is None or isinstance(layer, nn.Embedding) else parameter[rows]
        if parameter.ndim == 2 and columns is not None:
            kept = kept[:, columns]
        setattr(layer, name, nn.Parameter(kept.clone(), parameter.requires_grad))
    if isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape


def cut_neurons(block: nn.Module, kept: Tensor) -> None:
    """Leave a block with the neurons long [n]."""
    for part in ("mlp.gate_proj", "mlp.up_proj"):
        cut(block.get_submodule(part), rows=kept)
    cut(block.get_submodule("mlp.down_proj"), columns=kept)


def cut_groups(block: nn.Module, kept: Tensor, sizes: Sizes) -> None:
    """Leave a block with the KV groups long [n]."""
    for part, width in (("q", sizes.group), ("k", sizes.head_dim), ("v", sizes.head_dim)):
        cut(block.get_submodule(f"self_attn.{part}_proj"), rows=spread(kept, width))
    cut(block.get_submodule("self_attn.o_proj"), columns=spread(kept, sizes.group))


def cut_channels(model: nn.Module, kept: Tensor) -> None:
    """Leave the residual stream with the channels long [n]."""
    size, was_tied, top = embedding(model).embedding_dim, tied(model), head(model)
    for norm in norms(model).values():
        if len(norm.weight) == size:  # type: ignore[arg-type]
            cut(norm, rows=kept)
    for _, block in blocks(model):
        for part in PARTS:
            cut(block.get_submodule(part), **{"rows" if part in WRITERS else "columns": kept})
    cut(embedding(model), columns=kept)
    cut(top, columns=kept)
    if was_tied:
        top.weight = embedding(model).weight  # type: ignore[union-attr]


def cut_blocks(model: nn.Module, kept: Sequence[int]) -> None:
    """Leave a model with the blocks of these numbers."""
    stack = blocks(model)
    model.set_submodule(stack[0][0].rpartition(".")[0], nn.ModuleList([stack[i][1] for i in kept]))


def spread(units: Tensor, width: int) -> Tensor:
    """Positions long [n * width] of units long [n] that are `width` wide."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def rebuilt(model: Any, sizes: Sizes) -> nn.Module:
    """A new model of the class of one that was cut to these sizes, with its weights."""
    config = deepcopy(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: sizes.num_hidden_layers]
    for name, size in zip(Sizes._fields, sizes, strict=True):
        setattr(config, name, size)
    with torch.random.fork_rng(devices=[]):
        made: nn.Module = type(model)(config)
    made.to(device=embedding(model).weight.device, dtype=embedding(model).weight.dtype)  # type: ignore[arg-type]
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made
