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
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from quant.anatomy import blocks, embedding, linears
from quant.errors import QuantError
from quant.linear import unpacked

Batch = Mapping[str, Tensor]
"""`input_ids` Long[b, t], `attention_mask` Long[b, t], optional `loss_mask` Bool[b, t]."""


HALVED = 128


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

    def plus(self, other: Moments) -> Moments:
        """The sum, in this one's memory."""
        if self.drift is not None and other.drift is not None:
            self.drift.add_(other.drift)
        return Moments(self.hessian.add_(other.hessian), self.drift)


@dataclass
class Stage:
    """One block while it is being quantized."""

    model: nn.Module
    name: str
    index: int
    block: nn.Module
    runs: list[Run]
    clean: bool = False
    _targets: list[Tensor] | None = None
    _seen: set[str] = field(default_factory=set)

    @property
    def layers(self) -> dict[str, nn.Linear]:
        """The `nn.Linear` layers that are still in the block, by full name, in the order of their definition."""
        return dict(linears(self.name, self.block))

    def replace(self, name: str, layer: nn.Module) -> None:
        """Put `layer` where the one called `name` was."""
        if self.clean:
            self.targets()  # while the block can still tell
        self.model.set_submodule(name, layer)

    def forward(self, run: Run, hidden: Tensor) -> Tensor:
        """The block's output [b, t, d] for `hidden`, with gradients where they are on."""
        out = self.block(hidden, **run.kwargs[self.index])
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def targets(self) -> list[Tensor]:
        """What the unquantized block makes of each run's unquantized hidden states [b, t, d]."""
        if self._targets is None:
            self._targets = [self.forward(run, run.clean) for run in self.runs]
        return self._targets

    @torch.no_grad()
    def observe(self, see: Callable[[str, Tensor], None]) -> None:
        """Call `see(name, rows [n, K])` for each layer and run, with its inputs at the attended positions.

        Layers that read one tensor get one tensor of rows. Raises QuantError for NaN or infinite inputs, and where a
        layer sees no token.
        """
        latest: Tensor | None = None

        def checked(name: str, rows: Tensor) -> None:
            nonlocal latest
            if latest is not rows and not rows.sum(dtype=torch.float32).isfinite():
                raise _infinite(name)
            latest = rows
            see(name, rows)

        for run in self.runs:
            self._listen(run, run.hidden, checked)

    def _listen(self, run: Run, hidden: Tensor, see: Callable[[str, Tensor], None], whole: bool = False) -> Tensor:
        """One run through the block, up to the last layer's input, or the `whole` of it for the sake of its output."""
        layers, whole_mask = self.layers, bool(run.mask.all())
        waiting = set(layers)
        latest: tuple[Tensor, Tensor] | None = None

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                nonlocal latest
                (x,) = args
                if latest is None or latest[0] is not x:
                    attended = x.shape[:2] == run.mask.shape and not whole_mask
                    latest = (x, x[run.mask] if attended else x.flatten(0, -2))
                if len(latest[1]):
                    self._seen.add(name)
                    see(name, latest[1])
                waiting.discard(name)
                if not waiting and not whole:
                    raise _Heard

            return hook

        hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
        try:
            return self.forward(run, hidden)
        except _Heard:
            return hidden
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def moments(self, drift: bool = False) -> dict[str, Moments]:
        """Second moments of each layer's inputs; with `drift`, those of the quantization error in them as well.

        Layers that read one tensor share one `Moments`.
        """
        sums: dict[str, Moments] = {}
        reads: dict[str, str] = {}  # each layer -> the first that reads the same tensor
        targets = []
        for run in self.runs:
            drifted = drift and run.hidden is not run.clean
            clean: dict[str, Tensor] = {}
            if drifted:
                targets.append(self._listen(run, run.clean, clean.__setitem__, whole=True))
            latest: tuple[str, Tensor] | None = None

            def add(name: str, rows: Tensor, clean: dict[str, Tensor] = clean) -> None:
                nonlocal latest
                if latest is not None and latest[1] is rows:
                    first = latest[0]
                else:
                    first, latest = name, (name, rows)
                    now = _moments(rows.float(), clean.get(name))
                    sums[name] = sums[name].plus(now) if name in sums else now
                if reads.setdefault(name, first) != first:
                    raise QuantError(f"{name}: reads another tensor from batch to batch, which no moments describe")

            self._listen(run, run.hidden, add)
        if drift and len(targets) == len(self.runs) and self._targets is None:
            self._targets = targets
        for name in self.layers:
            if name not in self._seen:
                raise QuantError(f"{name}: no calibration token reached it; pass more or longer batches")
            if name in sums and not all(part.sum().isfinite() for part in sums[name] if part is not None):
                raise _infinite(name)
        return {name: sums[reads[name]] for name in self.layers}


def _infinite(name: str) -> QuantError:
    return QuantError(f"{name}: calibration activations hold NaN or Inf; check the model's dtype")


def _moments(rows: Tensor, clean: Tensor | None) -> Moments:
    """Of one run's rows float32 [n, K], and of the same in the unquantized model."""
    drift = None if clean is None else 2 * (clean.float() - rows).T @ rows
    half = rows.shape[1] // 2
    if half < HALVED:
        return Moments(2 * rows.T @ rows, drift)
    # A symmetric product by three of its four quarters: torch has no syrk.
    hessian = rows.new_empty(rows.shape[1], rows.shape[1])
    left, right = rows[:, :half], rows[:, half:]
    hessian[:half, :half] = left.T @ left
    hessian[half:, half:] = right.T @ right
    hessian[:half, half:] = left.T @ right
    hessian[half:, :half] = hessian[:half, half:].T
    return Moments(hessian.mul_(2), drift)


class Store(Protocol):
    """Where the blocks of a model larger than memory are while no one works on them: see `shards.py`."""

    def enter(self, index: int, block: nn.Module) -> None:
        """Bring the tensors of the block into memory; the walk has come to it."""

    def leave(self, index: int, block: nn.Module) -> None:
        """Let go of them; the walk will not come back."""


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

    With `clean`, runs carry the unquantized hidden states as well, at the price of a second pass through each block;
    who then changes a block otherwise than by `replace` asks for its `targets` first.
    Without batches it goes from block to block just the same, for methods that only look at weights. A model whose
    blocks are not all in memory says so by its `store`.
    The model is in evaluation mode during the walk and back in its own after it.
    """
    training = model.training
    model.eval()
    store: Store | None = getattr(model, "store", None)
    try:
        stack = blocks(model)
        runs = _enter(model, batches)
        for index, (name, block) in enumerate(stack):
            if store is not None:
                store.enter(index, block)
            stage = Stage(model, name, index, block, runs, clean)
            yield stage
            if index + 1 < len(stack):
                _pass_on(stage)
            if store is not None:
                store.leave(index, block)
    finally:
        model.train(training)


@torch.no_grad()
def _pass_on(stage: Stage) -> None:
    """Replace what enters the stage's block by what leaves it."""
    following = stage.targets() if stage.clean else None
    with unpacked(stage.block):
        for i, run in enumerate(stage.runs):
            run.hidden = stage.forward(run, run.hidden)
            run.clean = run.hidden if following is None else following[i]


class _Entered(Exception):
    """Raised where the last block would be: what comes after it is of no interest."""


class _Heard(Exception):
    """Raised where the last layer of a block would run whose input was all that was asked for."""


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
    device = next(iter(embedding(model).state_dict().values())).device  # blocks may be nowhere
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
