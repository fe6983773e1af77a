"""The walk through a model, block by block, that every method which looks at data is built on.

Layer-wise methods minimise ||W X - W' X'||^2 over the inputs a layer really sees: X in the unquantized model, X' in the
quantized one. All they need to know of them is H = 2 X'^T X' [K, K], the Hessian of that error for one output row
(Frantar et al. 2022, GPTQ, arXiv 2210.17323, section 3.1), and, to make up for the errors of earlier blocks as well,
the drift D = 2 (X - X')^T X' [K, K] (Li et al. 2025, GPTAQ, arXiv 2504.02692, section 3). Others want the largest
magnitude of each input, or the block's outputs: a `Stage` gives out all of these.

    for stage in walk(model, batches):
        moments = stage.moments()                              # of the block as it is
        stage.replace(name, layer)                             # the rest of the model will see what it became

Once a stage is left, its outputs are computed again, so later blocks see, and make up for, the errors of earlier ones.
Only one block's moments and two sets of hidden states (quantized and not) are alive at a time.

One pass in front of it records the keyword arguments that each block is called with (attention mask, rotary tables,
which may differ from block to block) and the hidden states that enter the first; no block runs in it, and no head.
Padded positions are masked out: their activations are artefacts, and in short chat data can outnumber the real ones.
Layers that read the same tensor (q, k and v; gate and up) share one product. Rejected: walking sub-layers one after
another inside a block ("true sequential"): four passes instead of one, for a gain within noise on the models this was
tried on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.anatomy import blocks, linears
from quant.errors import QuantError

Batch = Mapping[str, Tensor]
"""`input_ids` Long[b, t], `attention_mask` Long[b, t], optional `loss_mask` Bool[b, t]."""


@dataclass
class Run:
    """One batch on its way through the blocks.

    Attributes:
        hidden: float [b, t, d], what enters the block in the quantized model.
        clean: the same in the unquantized model; the same tensor until something was quantized.
        mask: Bool[b, t], False at padding.
        kwargs: what each block is called with beside it.
    """

    hidden: Tensor
    clean: Tensor
    mask: Tensor
    kwargs: list[dict[str, Any]] = field(default_factory=list)


class Moments(NamedTuple):
    """Of a layer's inputs: hessian float32 [K, K], drift float32 [K, K] or None where nothing drifted yet."""

    hessian: Tensor
    drift: Tensor | None


@dataclass
class Stage:
    """One block while it is being quantized."""

    model: nn.Module
    name: str
    index: int
    block: nn.Module
    runs: list[Run]

    @property
    def layers(self) -> dict[str, nn.Linear]:
        """The `nn.Linear` layers that are still in the block, by full name, in the order of their definition."""
        return dict(linears(self.name, self.block))

    def replace(self, name: str, layer: nn.Module) -> None:
        """Put `layer` where the one called `name` was."""
        self.model.set_submodule(name, layer)

    def forward(self, run: Run, hidden: Tensor) -> Tensor:
        """The block's output [b, t, d] for `hidden`, with gradients where they are on."""
        out = self.block(hidden, **run.kwargs[self.index])
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def targets(self) -> list[Tensor]:
        """What the block, as it is now, makes of each run's unquantized hidden states [b, t, d]."""
        return [self.forward(run, run.clean) for run in self.runs]

    @torch.no_grad()
    def observe(self, see: Callable[[str, Tensor], None], clean: bool = False) -> None:
        """Call `see(name, rows [n, K])` for each layer and run, with its inputs at the attended positions.

        Raises QuantError for NaN or infinite inputs, and where a layer sees no token.
        """
        mask = torch.empty(0)
        latest: tuple[Tensor, Tensor] | None = None  # q, k and v read one tensor, and get one tensor of rows
        seen = set()

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                nonlocal latest
                (x,) = args
                if latest is None or latest[0] is not x:
                    latest = (x, x[mask] if x.shape[:2] == mask.shape else x.flatten(0, -2))
                    if not latest[1].isfinite().all():
                        raise QuantError(f"{name}: calibration activations hold NaN or Inf; check the model's dtype")
                if len(latest[1]):
                    seen.add(name)
                    see(name, latest[1])

            return hook

        hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in self.layers.items()]
        try:
            for run in self.runs:
                mask, latest = run.mask, None
                self.forward(run, run.clean if clean else run.hidden)
        finally:
            for hook in hooks:
                hook.remove()
        for name in self.layers:
            if name not in seen:
                raise QuantError(f"{name}: no calibration token reached it; pass more or longer batches")

    def moments(self, drift: bool = False) -> dict[str, Moments]:
        """Second moments of each layer's inputs; with `drift`, those of the quantization error in them as well."""
        sums: dict[str, Moments] = {}
        drifted = drift and any(run.hidden is not run.clean for run in self.runs)
        kept: dict[str, list[Tensor]] = {}
        if drifted:
            self.observe(lambda name, rows: kept.setdefault(name, []).append(rows), clean=True)
        latest: tuple[Tensor, Moments] | None = None

        def add(name: str, rows: Tensor) -> None:
            nonlocal latest
            unquantized = kept[name].pop(0) if drifted else None
            if latest is None or latest[0] is not rows:
                x = rows.float()
                double = 2 * x.T
                latest = (rows, Moments(double @ x, None if unquantized is None else ((unquantized - x).T * 2) @ x))
            before, now = sums.get(name), latest[1]
            if before is None:
                sums[name] = Moments(*(None if m is None else m.clone() for m in now))  # type: ignore[arg-type]
                return
            before.hessian.add_(now.hessian)
            if before.drift is not None and now.drift is not None:
                before.drift.add_(now.drift)

        self.observe(add)
        return sums


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


def walk(model: nn.Module, batches: Sequence[Batch], clean: bool = False) -> Iterator[Stage]:
    """The blocks of `model` in order, each with what enters it.

    With `clean`, runs carry the unquantized hidden states as well, at the price of a second pass through each block.
    The model is in evaluation mode during the walk and back in its own after it.
    """
    training = model.training
    model.eval()
    try:
        stack = blocks(model)
        runs = _enter(model, batches)
        for index, (name, block) in enumerate(stack):
            stage = Stage(model, name, index, block, runs)
            last = index + 1 == len(stack)
            following = stage.targets() if clean and not last else None
            yield stage
            if last:
                return
            with torch.no_grad():
                outputs = [stage.forward(run, run.hidden) for run in runs]
            for i, run in enumerate(runs):
                run.hidden = outputs[i]
                run.clean = run.hidden if following is None else following[i]
    finally:
        model.train(training)


class _Entered(Exception):
    """Raised where the last block would be: what comes after it is of no interest."""


class _Doorway(nn.Module):
    """Stands where a block was: notes what it is called with and hands the hidden states on."""

    def __init__(self, block: nn.Module, runs: list[Run], first: bool, last: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a child, so that nothing of it is moved or counted twice
        self.runs, self.first, self.last = runs, first, last

    def __getattr__(self, name: str) -> Any:
        """What the model reads off its blocks, such as `attention_type`."""
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs |= _named(self.__dict__["block"], args)
        if self.first:
            self.runs[-1].hidden = self.runs[-1].clean = hidden
        self.runs[-1].kwargs.append(kwargs)
        if self.last:
            raise _Entered
        return hidden


@torch.no_grad()
def _enter(model: nn.Module, batches: Sequence[Batch]) -> list[Run]:
    """What each block is called with, for each batch."""
    runs: list[Run] = []
    device = next(model.parameters()).device
    stack = blocks(model)
    for i, (name, block) in enumerate(stack):
        model.set_submodule(name, _Doorway(block, runs, first=i == 0, last=i + 1 == len(stack)))
    try:
        for batch in batches:
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            runs.append(Run(torch.empty(0), torch.empty(0), mask.bool()))
            try:
                model(input_ids=ids, attention_mask=mask, **({"use_cache": False} if _caches(model) else {}))
            except _Entered:
                continue
    finally:
        for name, block in stack:
            model.set_submodule(name, block)
    return runs


def _caches(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "use_cache")


def _named(block: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments after the hidden states, by the names of the block's forward."""
    import inspect

    names = list(inspect.signature(block.forward).parameters)[1 : 1 + len(args)]
    return dict(zip(names, args, strict=True))
