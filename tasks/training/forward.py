"""A causal LM's logits where they are needed alone, for sequences packed one after another in one row.

A row of several sequences has no padding. Each must see itself alone: positions begin anew, and attention runs sequence
by sequence (`attend`), by torch's flash attention over variable lengths on CUDA and by one call a sequence elsewhere.
transformers would do the same by a mask over the whole row, whose cost grows with the square of the row: on one CPU
thread the seedling trains 1.2 times as fast this way in rows of 384 tokens, and 1.4 times in rows of 1,024.

Which architectures can be packed is tried out, not listed: `pack` compares two packed sequences with each alone. For
those that cannot, sequences lie side by side, padded on the right; causal attention needs no mask for that.
"""

from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.training.examples import Batch

PACKED = "packed"  # the name of `attend` among transformers' kinds of attention
SCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def logits_at(model: Any, ids: "Tensor", mask: "Tensor") -> "Tensor":
    """Logits [n, vocabulary] at the n positions of ids [b, t] that mask [b, t] marks.

    The head, which is most of a small model's work, sees those positions alone, unless the model scales its logits.
    """
    if any(getattr(model.config, name, None) not in (None, 1.0) for name in SCALED):
        out: Tensor = model(input_ids=ids, use_cache=False).logits[mask]
    else:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        out = model.get_output_embeddings()(hidden[mask])
    return out


def batch_logits(model: Any, batch: "Batch") -> "Tensor":
    """Logits [n, vocabulary] at the n answer positions of a batch, in its order."""
    if model.config._attn_implementation == PACKED:
        return packed_logits(model, batch.ids, batch.lengths, batch.answers.nonzero()[:, 0])
    from torch.nn.utils.rnn import pad_sequence

    ids, answers = (pad_sequence(part.split(batch.lengths), batch_first=True) for part in (batch.ids, batch.answers))
    return logits_at(model, ids, answers)


def packed_logits(model: Any, ids: "Tensor", lengths: list[int], at: "Tensor") -> "Tensor":
    """Logits [n, vocabulary] at positions long [n] of sequences of some lengths, one after another in ids [t]."""
    import torch

    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=ids.device)
    logits: Tensor = model(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None],
        # Four dimensions mean "prepared already": transformers builds no mask of its own, and `attend` needs none.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
        use_cache=False,
        logits_to_keep=at,
        lengths=lengths,
        ends=ends,
    ).logits[0]
    return logits


def pack(model: Any) -> bool:
    """Let a model's sequences be packed, if they can be: whether two in a row have the logits that each has alone."""
    import torch
    from transformers.modeling_utils import AttentionInterface

    kinds = set(getattr(model.config, "layer_types", None) or ())
    before = model.config._attn_implementation
    if before == PACKED:
        return True
    if before != "sdpa" or not kinds <= {"full_attention", "sliding_attention"}:
        return False
    device, training = model.device, model.training
    first, second = (torch.arange(3, 3 + n, device=device) % model.config.vocab_size for n in (7, 5))
    AttentionInterface.register(PACKED, attend)
    register_mask()
    model.eval()
    try:
        with torch.inference_mode():
            alone = torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in (first, second)])
            model.set_attn_implementation(PACKED)
            row = packed_logits(model, torch.cat([first, second]), [7, 5], torch.arange(12, device=device))
        fits = row.shape == alone.shape and torch.allclose(row, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    except Exception:  # whatever an architecture that knows nothing of this may raise
        fits = False
    finally:
        model.train(training)
    if not fits:
        model.set_attn_implementation(before)
    return fits


def register_mask() -> None:
    """Give `attend` the masks of "sdpa", for what is not packed: generation, for one."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionMaskInterface.register(PACKED, sdpa_mask)


def attend(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: list[int] | None = None,
    ends: "Tensor | None" = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple["Tensor", None]:
    """Causal attention within each of some sequences in a row, as transformers calls it; without `lengths` its "sdpa".

    Args:
        query: [1, heads, t, d]; key and value may have fewer heads.
        lengths: Of the sequences; their sum is t.
        ends: int32 [sequences + 1], the sums of the lengths from 0.

    Returns:
        [1, t, heads, d].

    Raises:
        NotImplementedError: The architecture asks for more: soft caps, sinks, biases.
    """
    import torch

    if lengths is None or ends is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
        return out, None
    if any(more.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("packed attention is plain attention")
    if query.is_cuda and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        q, k, v = (part[0].transpose(0, 1).to(half) for part in (query, key, value))
        window = (sliding_window - 1 if sliding_window else -1, 0)
        longest = max(lengths)
        out = varlen_attn(
            q,
            k,
            v,
            ends,
            ends,
            longest,
            longest,
            scale=scaling,
            window_size=window,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, torch.Tensor)
        return out[None], None
    parts = []
    for q, k, v in zip(*(part.split(lengths, 2) for part in (query, key, value)), strict=True):
        near = window_mask(q.shape[2], sliding_window, q.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, near, dropout, is_causal=near is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(out.transpose(1, 2))
    return torch.cat(parts, 1), None


def window_mask(length: int, window: int | None, device: Any) -> "Tensor | None":
    """Which positions see which, bool [length, length], where a sequence is longer than the window; else None."""
    import torch

    if not window or length <= window:
        return None
    at = torch.arange(length, device=device)
    back = at[:, None] - at
    return (back >= 0) & (back < window)
