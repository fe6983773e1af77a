"""Folds: channels divided where they are made and multiplied where they are read, so that a block computes the same.

Rounding is not scale invariant, the block is: for a tensor x that a norm or a linear makes and linears W read,

    W x = (W diag(s)) (diag(1/s) x)           s > 0, one number a channel

and 1/s goes into what makes x: a norm's gain, or a linear's rows. So a method may choose s to make W (AWQ) or x
(SmoothQuant) easier to round, and nothing is left at run time: the architecture stays what it was.

| makes x                          | reads x               | what is divided by s                                |
|----------------------------------|-----------------------|-----------------------------------------------------|
| a norm                           | q, k, v; gate, up; .. | gain, and a LayerNorm's bias                        |
| v_proj (or v's rows of a qkv)    | o_proj                | its rows; one s for all query heads that share them |
| up_proj (or up's rows of a pair) | down_proj             | its rows; the gate multiplies them, and stays       |

The second and third are sums and products of x's channels with numbers that do not depend on x, so s passes through.

**Found by what the tensors do.** One run of the block shows which linears are handed a norm's very output; pairs of
linears are known by their usual names and their shapes. Neither proves that nobody else reads x (BERT adds a norm's
output to the residual stream) or that nothing stands in between (a norm of the values). So every fold is tried: with
scales of 1/2, 1 and 2, which floating point multiplies without rounding, a fold that holds leaves the block's output
as it was, and one that does not changes it by half. All are tried together, and singly where that fails.

**Gains.** Some norms multiply by `weight`, Gemma's by 1 + `weight`. A norm is run on a weight of zeros and of ones:
what comes out at zero is the offset. The same run tells an RMSNorm from a LayerNorm, which `rotation.py` asks.

Sources: Lin et al. 2023 (AWQ, arXiv 2306.00978) section 3.2; Xiao et al. 2022 (SmoothQuant, arXiv 2211.10438) section
4; pairs of linears as in AWQ's code. Cost: three runs of each block on one batch. Tested on blocks of
eleven architectures: outputs before and after a random fold agree, and the folds that must not be found are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quant.anatomy import norms
from quant.calibrate import Stage

READ_BY = {
    "v_proj": ("o_proj", "out_proj", "dense"), "qkv_proj": ("o_proj",), "Wqkv": ("Wo",), "value": ("dense",),
    "up_proj": ("down_proj",), "gate_up_proj": ("down_proj",), "Wi": ("Wo",),
}  # fmt: skip
VALUES = ("v_proj", "qkv_proj", "Wqkv", "value")


@dataclass(frozen=True)
class Form:
    """How a norm computes: unit(x) * (offset + weight) + bias, where unit subtracts the mean if `centred`."""

    offset: float
    centred: bool


@dataclass(frozen=True)
class Fold:
    """A tensor whose channels can be divided where it is made and multiplied where it is read.

    Attributes:
        source: full name of the module that makes it.
        readers: the linears that read it, by full name; all have K inputs.
    """

    source: str
    readers: dict[str, nn.Linear]

    @property
    def channels(self) -> int:
        """How many numbers can be chosen: C, at most K."""
        raise NotImplementedError

    @property
    def makers(self) -> list[nn.Parameter]:
        """The parameters that make the tensor."""
        raise NotImplementedError

    def divide(self, scales: Tensor) -> None:
        """Divide the tensor by scales float32 [C] where it is made."""
        raise NotImplementedError

    def spread(self, scales: Tensor) -> Tensor:
        """[C] -> [K]: which input of the readers gets which scale."""
        return scales

    def pool(self, values: Tensor) -> Tensor:
        """[K] -> [C]: the largest of the values of inputs that share a scale."""
        return values

    @torch.no_grad()
    def apply(self, scales: Tensor) -> None:
        """Divide by scales float32 [C] where the tensor is made, multiply where it is read."""
        self.divide(scales)
        columns = self.spread(scales)
        for reader in self.readers.values():
            reader.weight.copy_(reader.weight.float() * columns)


@dataclass(frozen=True)
class NormFold(Fold):
    """Made by a norm."""

    norm: nn.Module
    form: Form

    @property
    def channels(self) -> int:
        return len(self.gain)

    @property
    def makers(self) -> list[nn.Parameter]:
        return list(self.norm.parameters())

    @property
    def weight(self) -> Tensor:
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def gain(self) -> Tensor:
        """What the norm multiplies by, float32 [K]."""
        return self.weight.detach().float() + self.form.offset

    def divide(self, scales: Tensor) -> None:
        with torch.no_grad():
            for part, value in self.norm.named_parameters():
                value.copy_(self.gain / scales - self.form.offset if part == "weight" else value.float() / scales)


@dataclass(frozen=True)
class PairFold(Fold):
    """Made by the last C rows of a linear, in heads of `width`; each of them is read `repeats` times in a row."""

    maker: nn.Linear
    count: int
    width: int
    repeats: int

    @property
    def channels(self) -> int:
        return self.count

    @property
    def makers(self) -> list[nn.Parameter]:
        return list(self.maker.parameters())

    def divide(self, scales: Tensor) -> None:
        with torch.no_grad():
            for value in self.makers:
                rows = value[-self.count :]
                rows.copy_((rows.float().movedim(0, -1) / scales).movedim(-1, 0))

    def spread(self, scales: Tensor) -> Tensor:
        return scales.view(-1, self.width).repeat_interleave(self.repeats, 0).flatten()

    def pool(self, values: Tensor) -> Tensor:
        return values.view(-1, self.repeats, self.width).amax(1).flatten()


@torch.no_grad()
def folds(stage: Stage) -> list[Fold]:
    """The folds of the stage's block that leave its output as it is. The block is as it was afterwards.

    Pairs of linears come first: they divide rows of linears that read a norm.
    """
    found: list[Fold] = [*_of_pairs(stage), *_of_norms(stage)]
    return found if _hold(stage, found) else [fold for fold in found if _hold(stage, [fold])]


def probe(norm: nn.Module) -> Form | None:
    """How `norm`, a module with a 1-D weight, computes; None where it is no norm of a kind known here."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    random = torch.Generator().manual_seed(0)
    x = (torch.randn(4, len(weight), generator=random) + 1).to(weight)
    parts = dict(norm.named_parameters())

    def run(gain: float, shift: float = 0) -> Tensor:
        filled = {part: torch.full_like(p, gain if part == "weight" else 0) for part, p in parts.items()}
        out: Tensor = functional_call(norm, filled, (x + shift,))
        return out.float()

    at_zero = run(0)
    unit = run(1) - at_zero
    offset = float((at_zero * unit).sum() / unit.square().sum())
    if not (at_zero - round(offset) * unit).norm() < 0.02 * unit.norm():
        return None
    centred = (run(1, shift=3) - run(0, shift=3) - unit).norm() < 0.1 * unit.norm()
    return Form(float(round(offset)), bool(centred))


def _of_norms(stage: Stage) -> list[NormFold]:
    """What each norm of the block feeds, by the identity of the tensors."""
    made: dict[str, Tensor] = {}  # held until the run ends, so that no other tensor takes an address
    read: dict[str, dict[str, nn.Linear]] = {}
    present = {f"{stage.name}.{name}": norm for name, norm in norms(stage.block).items()}
    hooks = []
    for name, norm in present.items():
        hooks.append(norm.register_forward_hook(lambda module, args, out, name=name: made.update({name: out})))

    def note(module: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        for norm, out in made.items():
            if args[0] is out and isinstance(module, nn.Linear):
                read.setdefault(norm, {})[name] = module

    for name, linear in stage.layers.items():
        hooks.append(linear.register_forward_pre_hook(lambda module, args, name=name: note(module, args, name)))
    try:
        stage.forward(stage.runs[0], stage.runs[0].hidden)
    finally:
        for hook in hooks:
            hook.remove()
    forms = {name: probe(present[name]) for name in read}
    return [NormFold(name, read[name], present[name], form) for name, form in forms.items() if form is not None]


def _of_pairs(stage: Stage) -> list[PairFold]:
    """Linears that by name and shape hand each of their channels on to another."""
    found = []
    layers = stage.layers
    for name, maker in layers.items():
        parent, _, own = name.rpartition(".")
        named = [n for n in layers if n.rpartition(".")[2] in READ_BY.get(own, ())]
        if not named:
            continue
        nearest = max(named, key=lambda n: _shared(n, name))
        reader = layers[nearest]
        inputs, rows = reader.in_features, maker.out_features
        if own in VALUES:
            count = rows if rows <= inputs else (rows - inputs) // 2
            attention = stage.model.get_submodule(parent)
            width = getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None)
        else:
            count = width = inputs
        if width and count <= rows and count % width == 0 and inputs % count == 0:
            found.append(PairFold(name, {nearest: reader}, maker, count, width, inputs // count))
    return found


def _shared(one: str, other: str) -> int:
    """How many leading parts two different names share."""
    return next(i for i, (a, b) in enumerate(zip(one.split("."), other.split("."), strict=False)) if a != b)


def _hold(stage: Stage, tried: Sequence[Fold]) -> bool:
    """Whether the block's output is the same with these folds applied, up to the rounding of its float type."""
    run = stage.runs[0]
    before = stage.forward(run, run.hidden)
    touched = {p for fold in tried for p in (*fold.makers, *(reader.weight for reader in fold.readers.values()))}
    kept = {p: p.clone() for p in touched}
    random = torch.Generator().manual_seed(0)
    try:
        for fold in tried:
            fold.apply(2.0 ** torch.randint(-1, 2, (fold.channels,), generator=random).to(before))
        after = stage.forward(run, run.hidden)
    finally:
        for p, value in kept.items():
            p.copy_(value)
    # Measured against what the block adds to its input, which may be far larger than that.
    off, added, whole = (float(t[run.mask].float().norm()) for t in (after - before, before - run.hidden, before))
    slack: float = torch.finfo(before.dtype).eps
    return off <= slack**0.5 * added + slack * whole
