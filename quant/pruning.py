"""PLACEHOLDER"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

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
