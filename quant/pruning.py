"""Structured pruning: a decoder with fewer blocks, heads, neurons or channels, that is a plain model of its class.

    small = prune(model, Prune(layers=0.5, mlp=0.5), batches)

Zeros (`methods/wanda.py`) need a runtime that skips them; a part that is cut out makes every file smaller and every
runtime faster. It also costs more, so it is done once, by importance on a little text, before the model is trained
again anyway (Muralidharan et al. 2024, Minitron, arXiv 2407.14679). Which parts, is in `importance.py`; how they are
cut out, in `cutting.py`.

* **Width by what is added, not by activations.** Minitron ranks neurons and heads by their mean activation. A factor
  moved from up_proj into down_proj changes that and not the model, so here an activation counts with the weights that
  read it: the size of what the stream would miss. KL from the unpruned seedling 0.368 against 0.387 by the size of
  activations and 2.23 by chance, at half of the neurons, before anything else is done.
* **What stays takes over what went**, by least squares over the calibration tokens. Where a linear W loses the inputs
  r and keeps k, with H = 2 Σ x xᵀ (the idea of ThiNet, Luo et al. 2017, arXiv 1707.06342),

      W_k += W_r H_rk (H_kk + λ I)⁻¹                  λ: a hundredth of H_kk's mean diagonal, as in GPTQ

  That is worth more than the ranking: 0.368 becomes 0.085. It takes the moments that GPTQ takes, and one solution a
  linear. Done for down and o; and for all that reads the stream when channels go, but for a head tied to the embedding.
* **Norms.** Without some channels the root mean square is another, so a gain is multiplied by what brings the output
  nearest to what it was.
* **Depth by leaving out.** The block without which the loss is lowest goes, then the next: n (n + 1) / 2 passes at
  most, without gradients. That keeps blocks 0 and 2 of the seedling's four, with a loss of 4.2 nats on other answers
  the best of the six pairs. Block influence, 1 - cos(input, output) (Men et al. 2024, ShortGPT, arXiv 2403.03853),
  takes one pass: 0.96, 0.10, 0.12 and 0.41 here, so it keeps 0 and 3, at 4.9. The loss is that of the text and not the
  divergence from the unpruned model: what a base says that has yet to learn the task is nothing to keep, and
  log-probabilities of a long vocabulary are much to hold.
* **Order.** Channels, then heads and neurons block by block, where later blocks see what became of earlier ones, then
  blocks. Blocks first comes to the same (KL 2.977 against 2.973).
* **Sizes** are the nearest that a file format bears (`multiple`), and whole KV groups, so that grouped-query attention
  stays what it is.
* **Proven, not assumed**: the new model says what the old one with parts cut out says, or it is refused, as Gemma is
  where channels would go: it multiplies the embedding by the root of the hidden size.

KL from the unpruned seedling before any training, on 200 validation answers of the simulated shop (256 sequences to
calibrate on, 128 for channels and blocks); "alone" is without the least squares:

| kept                 | parameters of 4.20 M | by importance | by chance | alone | by chance, alone |
|----------------------|----------------------|---------------|-----------|-------|------------------|
| 1/2 of the neurons   | 3.02 M               | 0.085         | 0.382     | 0.368 | 2.23             |
| 1/4 of the neurons   | 2.43 M               | 0.450         | 0.926     | 1.44  | 3.70             |
| 1/2 of the heads     | 3.80 M               | 1.75          | 3.05      | 2.94  | 3.15             |
| 3/4 of the channels  | 3.15 M               | 0.441         |           | 2.22  |                  |
| 1/2 of the blocks    | 2.62 M               | 2.96          | 3.2 to 12 |       |                  |

Students of these after 400 steps of logits with a LoRA of rank 32 (`bench/pruning.py`, one run each): validation
answers right of 409, and validation loss in nats.

| kept               | parameters | float32 | read, tokens/s | by importance  | by chance      | importance, rank 128 |
|--------------------|------------|---------|----------------|----------------|----------------|----------------------|
| all                | 4.20 M     | 16.8 MB | 7,800          | 336, 0.060     |                |                      |
| 1/2 of the neurons | 3.02 M     | 12.1 MB | 12,100         | 306, 0.081     | 306, 0.082     |                      |
| 1/2 of the blocks  | 2.62 M     | 10.5 MB | 16,100         | 127, 0.397     | 6, 1.040       |                      |
| both               | 2.03 M     | 8.1 MB  | 20,600         | 123, 0.438     | 113, 0.482     | 187, 0.267           |

Chance kept blocks 1 and 2 in the third row, the worst pair, and in the last 0 and 1, the second best: blocks have to be
chosen. Of neurons a half by chance, without the least squares too (301, 0.076), comes to the same once the student has
learned: there both methods only shorten the way, or help where there is little to learn from. Two of four blocks are
much for a seedling to lose in so few steps, and a pruned base has more to learn than rank 32 holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quant.described import described
from quant.errors import QuantError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch
    from quant.cutting import Sizes

DAMP = 0.01


@dataclass(frozen=True)
class Prune:
    """Shares of a decoder to keep; 1 keeps all.

    Attributes:
        layers: of its blocks.
        heads: of the attention heads of each block, in whole groups that share a key.
        mlp: of the neurons of each block's MLP.
        hidden: of the channels of the residual stream, embedding and head included.
        multiple: of which the neurons, the channels and the heads' channels that are left are a multiple: what a format
            puts into one block or group. Q4_0 to Q8_0 of GGUF need 32, K-quants 256, groups of 128 weights 128. The
            heads divide the channels as well, as the configurations of transformers ask.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "json_schema_extra": described}

    layers: float = 1.0
    heads: float = 1.0
    mlp: float = 1.0
    hidden: float = 1.0
    multiple: int = 32

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "mlp", "hidden"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise QuantError(f"{name} is a share to keep, above 0 and at most 1, got {share}; use 0.5 for one half")
        if self.multiple < 1:
            raise QuantError(f"multiple is at least 1, got {self.multiple}; use 32")

    def left(self, sizes: Sizes) -> Sizes:
        """What is left of a decoder of these sizes. Raises QuantError where a share below 1 would leave all."""
        heads, shared = sizes.num_attention_heads, sizes.shared
        even = self.multiple
        hidden = self._nearest("hidden", sizes.hidden_size, lambda n: n % even == n % heads == 0)
        groups = self._nearest(
            "heads", sizes.num_key_value_heads, lambda n: n * sizes.group % even == hidden % (n * shared) == 0
        )
        return sizes._replace(
            num_hidden_layers=self._nearest("layers", sizes.num_hidden_layers, lambda n: True),
            num_key_value_heads=groups,
            num_attention_heads=groups * shared,
            intermediate_size=self._nearest("mlp", sizes.intermediate_size, lambda n: n % even == 0),
            hidden_size=hidden,
        )

    def _nearest(self, name: str, size: int, fits: Callable[[int], bool]) -> int:
        """The number nearest to the share of `size` that fits; of two the larger."""
        share = getattr(self, name)
        if share == 1:
            return size
        fitting = [n for n in range(size, 0, -1) if n == size or fits(n)]
        nearest = min(fitting, key=lambda n: abs(n - share * size))
        if nearest == size:
            fewer = f"the next number that fits is {fitting[1]}" if fitting[1:] else "no smaller number fits"
            raise QuantError(f"{name}={share} would leave all {size}: {fewer}; take a smaller share or multiple, or 1")
        return nearest


def prune(model: nn.Module, spec: Prune, batches: Sequence[Batch], *, progress: Progress | None = None) -> nn.Module:
    """A smaller model of the same class: what of `model`, which stays as it is, matters most for `batches`.

    Args:
        model: a plain decoder in the Hugging Face shape, with a `config` that its class makes a model from.
        batches: text of the kind that the model is for: `input_ids` Long[b, t], `attention_mask` Long[b, t] and
            optionally `loss_mask` Bool[b, t], True at an answer's tokens.
        progress: called with (done, total, what).

    Raises:
        QuantError: the model is of another kind; a share below 1 would leave all; there are no batches; or the class
            makes something else of the smaller sizes than what was left.
    """
    from quant.anatomy import check
    from quant.calibrate import require
    from quant.cutting import cut_blocks, rebuilt, sizes_of
    from quant.importance import blocks_to_keep

    require(batches, "pruning")
    check(model, {})
    sizes = sizes_of(model)
    left = spec.left(sizes)
    kinds = sorted(set(getattr(model.config, "layer_types", None) or ()))
    if left.num_hidden_layers < sizes.num_hidden_layers and len(kinds) > 1:
        raise QuantError(f"blocks are of several kinds, {' and '.join(kinds)}, which take turns; give layers=1")
    small = deepcopy(model).eval()
    if left.hidden_size < sizes.hidden_size:
        _cut_hidden(small, left.hidden_size, batches)
    if left[1:-1] != sizes[1:-1]:
        _cut_width(small, sizes, left, batches)
    cut_blocks(small, blocks_to_keep(small, batches, left.num_hidden_layers, progress or (lambda *of: None)))
    made = rebuilt(small, left)
    _agree(small, made, batches[0])
    return made.train(model.training)


def _cut_hidden(model: nn.Module, count: int, batches: Sequence[Batch]) -> None:
    """Leave `count` channels of the residual stream."""
    import torch

    from quant.anatomy import head, tied
    from quant.cutting import cut_channels
    from quant.importance import channel_shares, gains, reads_of
    from quant.scaling import probe

    reads = reads_of(model, batches)
    kept = highest(channel_shares(reads), count)
    norm: Any
    for norm, factor in gains(model, batches, kept).items():
        form = probe(norm)
        if form is None or form.centred:
            kind = f"{type(norm).__name__} of {type(model).__name__}"
            raise QuantError(f"{kind} is no RMSNorm: without some channels it has another mean; give hidden=1")
        with torch.no_grad():
            norm.weight.copy_((norm.weight + form.offset) * factor - form.offset)
    for read in reads:
        for reader in read.readers:
            if not (tied(model) and reader is head(model)):  # the embedding is to stay what it is
                absorb(reader, kept, read.hessian, 1)
    cut_channels(model, kept)


def _cut_width(model: nn.Module, sizes: Sizes, left: Sizes, batches: Sequence[Batch]) -> None:
    """Leave the KV groups and neurons of each block; later blocks see what became of the earlier ones."""
    from quant.calibrate import walk
    from quant.cutting import cut_groups, cut_neurons
    from quant.importance import contributions

    for stage in walk(model, batches):
        for part, width, count in (
            ("self_attn.o_proj", sizes.group, left.num_key_value_heads),
            ("mlp.down_proj", 1, left.intermediate_size),
        ):
            writer: Any = stage.block.get_submodule(part)
            if writer.in_features == count * width:
                continue
            hessian = stage.moments()[f"{stage.name}.{part}"].hessian
            kept = highest(contributions(writer.weight, hessian, width), count)
            absorb(writer, kept, hessian, width)
            if width == 1:
                cut_neurons(stage.block, kept)
            else:
                cut_groups(stage.block, kept, sizes)


def _agree(cut: nn.Module, made: nn.Module, batch: Batch) -> None:
    """Raise QuantError where the first sequence of a batch shows that two models are not the same."""
    import torch

    from quant.distillation import log_probabilities

    first = {name: tensor[:1] for name, tensor in batch.items()}
    with torch.no_grad():
        was, now = (log_probabilities(m.eval(), first, first["attention_mask"].bool()) for m in (cut, made))
    if not (now - was).norm() <= torch.finfo(next(made.parameters()).dtype).eps ** 0.5 * was.norm():
        kind = type(made).__name__
        raise QuantError(
            f"a {kind} of these sizes computes otherwise than what was cut: its class makes more of a size "
            "than a shape, or its blocks differ; prune another part of it"
        )


def absorb(linear: nn.Linear, kept: Tensor, hessian: Tensor, width: int) -> None:
    """Let the kept units of a linear's inputs do for it what the others did, in place.

    Args:
        kept: long [n], units of `width` neighbouring inputs.
        hessian: float32 [K, K], 2 Σ x xᵀ of the inputs.
    """
    import torch

    from quant.cutting import spread

    stay = torch.zeros(linear.in_features, dtype=torch.bool, device=hessian.device)
    stay[spread(kept, width)] = True
    inner = hessian[stay][:, stay]
    inner.diagonal().add_(DAMP * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
    with torch.no_grad():
        weight = linear.weight.float()
        taken = torch.linalg.solve(inner, hessian[stay][:, ~stay] @ weight[:, ~stay].T).T
        linear.weight[:, stay] += taken.to(linear.weight.dtype)


def highest(scores: Tensor, count: int) -> Tensor:
    """The positions of the `count` highest scores, long, ascending; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
