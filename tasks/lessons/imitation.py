"""Imitation: the answers as they were given, or as people corrected them.

    loss = Σ w · CE(answer token) / Σ w        over answer tokens only

w is the feedback policy's weight of the answer (`policy.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.lessons.lesson import Loss
from tasks.training.examples import Batch, Example, collate

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.lessons.lesson import Desk, Teach


@dataclass(frozen=True)
class Imitation:
    """The answers alone."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["imitation"] = "imitation"
    follows: ClassVar[bool] = False

    def prepare(self, desk: "Desk") -> "Teach":
        return lambda model, group, at: imitate(model, group)


def imitate(model: Any, group: Sequence[Example]) -> Loss:
    """The cross-entropy of a batch's answer tokens, weighted."""
    batch = collate(group, model.device)
    return weighted(cross_entropy(answer_logits(model, batch).log_softmax(-1), batch.targets), batch.weight)


def answer_logits(model: Any, batch: Batch) -> "Tensor":
    """The adapted model's logits float32 [n, vocabulary] where a batch's answers are; by bfloat16 on CUDA."""
    import torch

    from tasks.training.forward import batch_logits

    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        return batch_logits(model.get_base_model(), batch).float()


def cross_entropy(logp: "Tensor", targets: "Tensor") -> "Tensor":
    """Negative log-probability [n] of the targets long [n] under log-probabilities [n, vocabulary]."""
    return -logp.gather(-1, targets[:, None]).squeeze(-1)


def weighted(loss: "Tensor", weight: "Tensor") -> Loss:
    """The weighted sum of losses [n] by weights [n], and the sum of the weights."""
    return Loss((weight * loss).sum(), weight.sum())
