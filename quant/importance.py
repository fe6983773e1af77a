"""What of a decoder matters for some text: how much would be missing of what it computes.

**Neurons and KV groups** count by what they add to the residual stream. A linear W (down, o) reads x; unit u of its
inputs contributes W_u x_u, and with H = 2 Σ x xᵀ over all tokens, which `calibrate` has,

    Σ ‖W_u x_u‖² = tr(W_u H_uu W_uᵀ) / 2          for a neuron, one column,  ‖W_u‖² Σ x_u²

**Channels** count by their part in what is read of them: of a reader of a norm's output x, channel c has ‖W_c‖² Σ x_c².
Divided by the sum over the channels, so that each reader counts the same, and summed over all readers, the head too.

**Blocks** count by the loss without them, on the answers where a `loss_mask` tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quant import Progress
from quant.anatomy import blocks, embedding, head, norms
from quant.calibrate import Batch
from quant.cutting import READERS, cut
from quant.distillation import log_probabilities


class Read(NamedTuple):
    """Linears that read one tensor x of the residual stream, behind its norm, and H = 2 Σ x xᵀ float32 [d, d]."""

    readers: list[nn.Linear]
    hessian: Tensor


def contributions(weight: Tensor, hessian: Tensor, width: int) -> Tensor:
    """2 Σ ‖W_u x_u‖² of each unit of `width` neighbouring inputs, float32 [K / width].

    Args:
        weight: float [N, K].
        hessian: float32 [K, K], of the inputs.
    """
    columns = weight.detach().float().T.unflatten(0, (-1, width))  # [units, width, N]
    pairs = hessian.unflatten(0, (-1, width)).unflatten(2, (-1, width))
    own = pairs.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [units, width, width]
    return ((own @ columns) * columns).sum((1, 2))


def channel_shares(reads: Sequence[Read]) -> Tensor:
    """The part of each channel in what is read of the residual stream, summed over all readers, float32 [d]."""
    parts = [contributions(reader.weight, read.hessian, 1) for read in reads for reader in read.readers]
    return torch.stack([part / part.sum() for part in parts]).sum(0)


@torch.no_grad()
def reads_of(model: nn.Module, batches: Sequence[Batch]) -> list[Read]:
    """What reads the residual stream, by the tensors: q, k and v; gate and up; the head."""
    top = head(model)
    assert isinstance(top, nn.Linear)
    found = {top: Read([top], top.weight.new_zeros(top.in_features, top.in_features, dtype=torch.float32))}
    for _, block in blocks(model):
        for parts in READERS:
            readers: list[nn.Linear] = [block.get_submodule(part) for part in parts]  # type: ignore[misc]
            found[readers[0]] = Read(readers, torch.zeros_like(found[top].hessian))

    def add(reader: nn.Linear, rows: Tensor) -> None:
        found[reader].hessian.addmm_(rows.float().T, rows.float(), alpha=2)

    _hear(model, batches, list(found), add)
    return list(found.values())


@torch.no_grad()
def gains(model: nn.Module, batches: Sequence[Batch], kept: Tensor) -> dict[nn.Module, float]:
    """By what the output of each norm of the residual stream, cut to the channels long [n], is nearest to what it was.

    A norm divides by the root mean square of all its channels, which is another number without some of them.
    """
    size = embedding(model).embedding_dim
    whole = [norm for norm in norms(model).values() if len(norm.weight) == size]  # type: ignore[arg-type]
    small = {norm: deepcopy(norm) for norm in whole}
    for norm in small.values():
        cut(norm, rows=kept)
    both, own = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0.0)

    def add(norm: nn.Module, rows: Tensor) -> None:
        was, now = norm.forward(rows)[:, kept].float(), small[norm](rows[:, kept]).float()
        both[norm] += float((was * now).sum())
        own[norm] += float(now.square().sum())

    _hear(model, batches, whole, add)
    return {norm: both[norm] / own[norm] if own[norm] else 1.0 for norm in whole}


def _hear(model: nn.Module, batches: Sequence[Batch], modules: Sequence[nn.Module], see: Callable[..., None]) -> None:
    """Call see(module, rows [n, K]) with what each module is given at the attended positions of each batch."""
    top, device = head(model), next(model.parameters()).device
    assert top is not None
    # A vocabulary is long, and no one asks for logits here. Hooks run in order: a `see` for the head comes first.
    for batch in batches:
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].bool().to(device)
        hooks = [
            module.register_forward_pre_hook(lambda module, args, mask=mask: see(module, args[0][mask]))
            for module in modules
        ]
        hooks.append(top.register_forward_pre_hook(lambda module, args: (args[0][:, :1],)))
        try:
            model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy in nats of the answers' tokens, or of all where nothing says which are answers'."""
    total, count = 0.0, 0
    for batch in batches:
        counts = batch["attention_mask"].bool() & batch.get("loss_mask", batch["attention_mask"]).bool()
        where = counts.roll(-1, dims=1)
        where[:, -1] = False
        logp = log_probabilities(model, batch, where)
        targets = batch["input_ids"].roll(-1, dims=1)[where].to(logp.device)
        total -= float(logp.gather(-1, targets[:, None]).sum(dtype=torch.float64))
        count += len(targets)
    return total / count


def blocks_to_keep(model: nn.Module, batches: Sequence[Batch], count: int, progress: Progress) -> list[int]:
    """The numbers of the blocks that are left when the one without which the loss is lowest goes, again and again."""
    stack = blocks(model)
    name, whole = stack[0][0].rpartition(".")[0], model.get_submodule(stack[0][0].rpartition(".")[0])
    kept, done, total = list(range(len(stack))), 0, sum(range(count + 1, len(stack) + 1))
    try:
        while len(kept) > count:
            without: dict[int, float] = {}
            for i in kept:
                model.set_submodule(name, nn.ModuleList([stack[j][1] for j in kept if j != i]))
                without[i] = loss(model, batches)
                done += 1
                progress(done, total, "prune")
            kept.remove(min(without, key=without.__getitem__))
    finally:
        model.set_submodule(name, whole)
    return kept
