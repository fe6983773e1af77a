"""Runs batches through a model block by block and hands each linear layer the second moment of its inputs.

Every layer-wise method minimises ||W X - W' X||^2 over the inputs X a layer really sees; all it needs to know of them
is H = 2 X^T X [K, K], the Hessian of that error for one output row (Frantar et al. 2022, GPTQ, arXiv 2210.17323,
section 3.1). The walk is sequential: once a block is quantized its outputs are computed again, so later blocks see, and
make up for, the errors of earlier ones. Only one block's Hessians and one set of hidden states are alive at a time.

One full pass records the keyword arguments each block is called with (attention mask, rotary tables, which may differ
from block to block) and the hidden states that enter the first. Padded positions are masked out of H: their
activations are artefacts, and in short chat data can outnumber the real ones. Layers that read the same tensor (q, k
and v; gate and up) share one product. Rejected: walking sub-layers one after another inside a block ("true
sequential"): four passes instead of one, for a gain within noise on the models this was tried on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant import Progress
from quant.anatomy import blocks, linears
from quant.errors import QuantError

Batch = Mapping[str, Tensor]
"""`input_ids` Long[b, t], `attention_mask` Long[b, t], optional `loss_mask` Bool[b, t]."""

Solve = Callable[[str, nn.Linear, Tensor], nn.Module]
"""solve(name, linear, H float32 [K, K]) -> what takes the linear's place."""


@dataclass
class _Run:
    """One batch on its way through the blocks: hidden states [b, t, d], its mask, each block's keyword arguments."""

    hidden: Tensor
    mask: Tensor
    kwargs: list[dict[str, Any]]


def require(batches: Sequence[Batch], method: str) -> None:
    """Raise QuantError unless there are batches, with the keys and shapes of `Batch`."""
    if not batches:
        raise QuantError(f"{method} needs calibration batches, got 0; pass some, or use rtn")
    for i, batch in enumerate(batches):
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is None or mask is None or ids.shape != mask.shape:
            raise QuantError(f"calibration batch {i} needs input_ids and attention_mask of one shape [b, t]")
        if "loss_mask" in batch and batch["loss_mask"].shape != ids.shape:
            raise QuantError(f"calibration batch {i} needs a loss_mask of input_ids' shape {list(ids.shape)}, or none")
    if not any(bool(batch["attention_mask"].any()) for batch in batches):
        raise QuantError("calibration batches hold only padding; pass text with attention_mask 1")


@torch.no_grad()
def calibrate(model: nn.Module, batches: Sequence[Batch], solve: Solve, progress: Progress, total: int) -> None:
    """Replace every linear of the blocks by what `solve` makes of it, first block to last.

    `progress` counts replaced linears up to `total`. Raises QuantError for NaN or infinite activations.
    """
    training = model.training
    model.eval()
    stack = blocks(model)
    runs = _enter(model, [block for _, block in stack], batches)
    done = 0
    for index, (block_name, block) in enumerate(stack):
        layers = linears(block_name, block)
        for name, hessian in _hessians(block, index, dict(layers), runs).items():
            model.set_submodule(name, solve(name, model.get_submodule(name), hessian))  # type: ignore[arg-type]
            done += 1
            progress(done, total, name)
        if index + 1 < len(stack):
            for run in runs:
                run.hidden = _forward(block, run, index)
    model.train(training)


def _enter(model: nn.Module, stack: list[nn.Module], batches: Sequence[Batch]) -> list[_Run]:
    """What each block is called with, for each batch."""
    runs: list[_Run] = []
    device = next(model.parameters()).device

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index == 0:
                runs[-1].hidden = args[0]
            runs[-1].kwargs.append(kwargs)

        return hook

    hooks = [block.register_forward_pre_hook(note(i), with_kwargs=True) for i, block in enumerate(stack)]
    try:
        for batch in batches:
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            runs.append(_Run(hidden=torch.empty(0), mask=mask.bool(), kwargs=[]))
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return runs


def _forward(block: nn.Module, run: _Run, index: int) -> Tensor:
    out = block(run.hidden, **run.kwargs[index])
    return out[0] if isinstance(out, tuple) else out


def _hessians(block: nn.Module, index: int, layers: dict[str, nn.Linear], runs: list[_Run]) -> dict[str, Tensor]:
    """H = 2 X^T X over the attended positions, float32 [K, K] for each layer that was called."""
    sums: dict[str, Tensor] = {}
    mask = torch.empty(0)
    latest: tuple[Tensor, Tensor] | None = None  # the last input and its product: q, k and v read the same tensor

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal latest
            (x,) = args
            if latest is None or latest[0] is not x:
                rows = x[mask] if x.shape[:2] == mask.shape else x.flatten(0, -2)
                rows = rows.float()
                latest = (x, 2 * rows.T @ rows)
            if not latest[1].isfinite().all():
                raise QuantError(f"{name}: calibration activations hold NaN or Inf; check the model and its dtype")
            sums[name] = sums[name] + latest[1] if name in sums else latest[1]

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        for run in runs:
            mask = run.mask
            _forward(block, run, index)
            latest = None
    finally:
        for hook in hooks:
            hook.remove()
    unused = [name for name in layers if name not in sums]
    if unused:
        raise QuantError(f"{unused[0]}: no calibration token reached it; pass more or longer batches")
    return sums
