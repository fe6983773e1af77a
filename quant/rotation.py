"""Rotation: a decoder whose residual stream is written in another basis, so that outliers are spread over all of it.

A few channels of a language model's hidden states are many times larger than the rest, and the weights that write and
read them are uneven to match: one group of weights then pays with a coarse step for one entry. The basis is arbitrary.
For orthogonal R, h' = h R, an RMSNorm without a gain commutes with R (it divides by a norm that R keeps), so with

    embedding E' = E R        readers W' = W diag(g) R, g -> 1        writers W' = R^T W, b' = R^T b

(readers take a norm's output: q, k, v, gate, up, head; writers add to the stream: o, down; g is the norm's gain) the
logits are what they were. R = diag(random signs) H with H a Hadamard matrix mixes every channel into every other at
the same magnitude. In each head, likewise, v' = v Q and o' = o Q for one Q a block (rows of v_proj, columns of o_proj).

Ashkboos et al. 2024 (QuaRot, arXiv 2404.00456) section 4, on SliceGPT's computational invariance (arXiv 2401.15024,
theorem 1); Liu et al. 2024 (SpinQuant, arXiv 2405.16406) section 3.1 calls these R1 and R2. Their other rotations (of
down_proj's input, of queries and keys) need a product at run time, and with it a runtime that knows: left out, since a
model that was rotated here is a plain model of its architecture.

* **Sizes.** 2^k times an odd m: the Sylvester matrix of 2^k, Kronecker a discrete Hartley transform of m, (cos + sin)
  (2 pi i j / m) / sqrt(m) (Bracewell 1983), which is orthogonal for every m and never exceeds sqrt(2 / m), where a
  random orthogonal matrix has entries much larger. All products are in float64 and rounded once.
* **Tied head and embedding.** The head wants E diag(g) R, the embedding E R. They can stay one matrix only where
  R diag(g') R^T = diag(g) for some gain g' of the last norm. Then each column of R is an eigenvector of diag(g), and as
  none of its entries is 0, g is constant: it stays where it is, and so does the tie. Any other g unties them: the file
  grows by a head, `config.tie_word_embeddings` becomes False, and a spec's `head_bits` now speaks for the head, not
  `embedding_bits`. Rejected: g in E, and its inverse behind the embedding, where there is no norm to hold it.
* **Refused**, by the name of the first norm in the way: LayerNorm, whose mean is not invariant (absorbing it, as
  SliceGPT does, changes the architecture); norms after a block's linears (Gemma 2 and 3, OLMo 2), whose gain lies
  between a writer and the stream; encoders without a head.
* **Proven, not assumed**: logits of a random prompt before and after, to the square root of the float type's epsilon
  (relative; float32 comes to about 1e-6). Where they differ everything is put back.

It helps where there are outliers; models of a few million parameters have next to none. KL of GPTQ, plain -> rotated:

| bits, group            | 4, 128             | 4, 32              | 3, 128             | 2, 32              |
|------------------------|--------------------|--------------------|--------------------|--------------------|
| pretrained 0.9 M Llama | 0.0414 -> 0.0394   | 0.0314 -> 0.0309   | 0.152 -> 0.152     | 0.606 -> 0.581     |
| 4.2 M of this project  | 0.0781 -> 0.0704   | 0.0525 -> 0.0595   | 0.213 -> 0.238     | 0.569 -> 0.612     |

So try it and measure. Cost: the products, in float64, and three runs of a short prompt.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.anatomy import embedding, head, norms, tied
from quant.calibrate import Batch, Stage, walk
from quant.errors import QuantError
from quant.linear import QuantWeight
from quant.scaling import VALUES, NormFold, PairFold, folds, probe

CHUNK = 8192
PROMPT = (2, 24)
WAY_OUT = "quantize without rotation"


def hadamard(size: int) -> Tensor:
    """An orthogonal, symmetric matrix float64 [size, size] whose entries are at most sqrt(2 / size)."""
    power = size & -size
    index = torch.arange(size // power)
    angle = (torch.outer(index, index) % len(index)).double() * (2 * math.pi / len(index))
    matrix = (angle.cos() + angle.sin()) / math.sqrt(len(index))
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64) / math.sqrt(2)
    for _ in range(power.bit_length() - 1):
        matrix = torch.kron(pair, matrix)
    return matrix


@torch.no_grad()
def rotate(model: nn.Module, seed: int = 0) -> None:
    """Rotate an unquantized decoder in place; only weights change, and a tie of head and embedding where it must.

    Raises QuantError, with the model as it was, where its norms cannot be rotated or its logits would change.
    """
    kind, top, table = type(model).__name__, head(model), embedding(model)
    if any(isinstance(module, QuantWeight) for module in model.modules()):
        raise QuantError(f"{kind} is already quantized; rotate the original model")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise QuantError(f"{kind} is not in memory as a whole, and a rotation turns all of it; load it, or {WAY_OUT}")
    if not isinstance(top, nn.Linear) or not isinstance(table, nn.Embedding):
        raise QuantError(f"{kind} has no output head, and rotation is proven by logits; {WAY_OUT}")
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(table.num_embeddings, PROMPT, generator=random).to(table.weight.device)
    turn = _randomized(table.embedding_dim, random, ids.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parts = [_parts(stage, len(turn)) for stage in walk(model, [batch])]
    before, final = _logits(model, batch)
    with ExitStack() as undo:
        for part in parts:
            _turned(part, turn, random).write(undo)
        _turn_ends(model, final, turn, undo)
        after, _ = _logits(model, batch)
        off, limit = float((after - before).norm() / before.norm()), torch.finfo(top.weight.dtype).eps ** 0.5
        if not off <= limit:
            raise QuantError(
                f"{kind}: rotated, its logits are off by {off:.1e} of their norm, limit {limit:.1e}: something beside "
                f"RMSNorms and linears acts on its residual stream; {WAY_OUT}"
            )
        undo.pop_all()


class _Draft(dict[Tensor, Tensor]):
    """What parameters are to become, float64; what was not set is what they are."""

    def __missing__(self, parameter: Tensor) -> Tensor:
        self[parameter] = parameter.detach().double()
        return self[parameter]

    def write(self, undo: ExitStack) -> None:
        for parameter, value in self.items():
            undo.callback(setattr, parameter, "data", parameter.data)
            parameter.data = value.to(parameter.dtype)


class _Parts(NamedTuple):
    """What of a block is to be turned."""

    norms: list[NormFold]
    heads: list[PairFold]
    writers: list[nn.Linear]


def _parts(stage: Stage, size: int) -> _Parts:
    """What reads and writes the residual stream [.., size]. Raises QuantError where rotation is not possible."""
    found = folds(stage)
    read = [fold for fold in found if isinstance(fold, NormFold) and fold.channels == size]
    good = {id(fold.norm) for fold in read if not fold.form.centred}
    for name, norm in norms(stage.block).items():
        weight = norm.weight
        assert isinstance(weight, Tensor)
        if len(weight) == size and id(norm) not in good:
            form = probe(norm)
            why = "subtracts a mean" if form is not None and form.centred else "feeds something else than linears"
            raise QuantError(f"{stage.name}.{name} {why}, which a rotation would change; {WAY_OUT}")
    if not read:
        raise QuantError(f"{stage.name} has no norm with a gain in front of its linears; {WAY_OUT}")
    readers = {name for fold in read for name in fold.readers}
    heads = [fold for fold in found if isinstance(fold, PairFold) and fold.source.rpartition(".")[2] in VALUES]
    writers = [m for name, m in stage.layers.items() if name not in readers and m.out_features == size]
    return _Parts(read, heads, writers)


def _turned(part: _Parts, turn: Tensor, random: torch.Generator) -> _Draft:
    """What a block's parameters become."""
    value = _Draft()
    for fold in part.norms:
        gain = value[fold.weight] + fold.form.offset
        for reader in fold.readers.values():
            value[reader.weight] = value[reader.weight] * gain @ turn
        value[fold.weight] = torch.full_like(gain, 1 - fold.form.offset)
    for writer in part.writers:
        for p in writer.parameters():  # [size, K] and [size]
            value[p] = turn.T @ value[p]
    for pair in part.heads:
        within = _randomized(pair.width, random, turn.device)
        for p in pair.maker.parameters():  # [N, K] and [N]
            made = value[p][-pair.count :].unflatten(0, (-1, pair.width))
            value[p][-pair.count :] = torch.einsum("hd...,de->he...", made, within).flatten(0, 1)
        for reader in pair.readers.values():
            value[reader.weight] = (value[reader.weight].unflatten(1, (-1, pair.width)) @ within).flatten(1)
    return value


def _turn_ends(model: Any, final: NormFold, turn: Tensor, undo: ExitStack) -> None:
    """Turn embedding and head; the last norm's gain goes into the head, unless it is the same for all channels."""
    table, top = embedding(model), head(model)
    assert isinstance(table, nn.Embedding) and isinstance(top, nn.Linear)
    value, gain = _Draft(), final.gain.double()
    if tied(model) and not (gain == gain[0]).all():
        undo.callback(setattr, top, "weight", top.weight)
        top.weight = nn.Parameter(top.weight.detach(), top.weight.requires_grad)  # `write` gives it its own storage
        undo.callback(setattr, model.config, "tie_word_embeddings", True)
        model.config.tie_word_embeddings = False
    if not tied(model):
        value[top.weight] = _product(top.weight, gain[:, None] * turn)
        value[final.weight] = torch.full_like(gain, 1 - final.form.offset)
    value[table.weight] = _product(table.weight, turn)
    value.write(undo)


def _product(matrix: Tensor, turn: Tensor) -> Tensor:
    """matrix [n, d] @ turn float64 [d, d], in pieces: a vocabulary is long. In the matrix's type."""
    return torch.cat([(rows.double() @ turn).to(matrix.dtype) for rows in matrix.split(CHUNK)])


def _randomized(size: int, random: torch.Generator, device: torch.device) -> Tensor:
    """The Hadamard matrix with random signs on its rows, float64."""
    signs = torch.randint(2, (size, 1), generator=random).double() * 2 - 1
    return (signs * hadamard(size)).to(device)


def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, NormFold]:
    """The logits of `batch`, float32, and the norm that the head reads. Raises QuantError where it reads none."""
    made: list[tuple[str, nn.Module, Tensor]] = []
    read: list[Tensor] = []
    top = head(model)
    assert isinstance(top, nn.Linear)
    hooks = [
        norm.register_forward_hook(lambda module, args, out, name=name: made.append((name, module, out)))
        for name, norm in norms(model).items()
    ]
    hooks.append(top.register_forward_pre_hook(lambda module, args: read.append(args[0])))
    training = model.training
    model.eval()
    try:
        logits: Tensor = model(**batch).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    for name, norm, out in made:
        # The head is handed a view, as not every position may be wanted.
        if out.shape == read[0].shape and out.data_ptr() == read[0].data_ptr():
            form = probe(norm)
            if form is not None and not form.centred:
                return logits, NormFold(name, {}, norm, form)
    raise QuantError(f"{type(model).__name__}: its head does not read an RMSNorm; {WAY_OUT}")
