"""A causal LM's logits, at the positions where they are needed alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def logits_at(model: Any, ids: "Tensor", mask: "Tensor") -> "Tensor":
    """Logits [n, vocabulary] at the n positions of ids [b, t] that mask [b, t] marks.

    The head, which is most of a small model's work, sees those positions alone, unless the model scales its logits.
    """
    if any(getattr(model.config, name, None) not in (None, 1.0) for name in SCALED):
        out: Tensor = model(input_ids=ids).logits[mask]
    else:
        out = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state[mask])
    return out
