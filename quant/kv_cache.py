"""The KV cache on 8 bits: one step a layer for its keys, one for its values.

A cache holds 2 * layers * kv_heads * head_dim numbers a token; on 8 bits half the bytes of bfloat16, so twice the
context or twice the requests in the same memory. What is cached is rounded once, when a token enters,

    k^ = s_k level(k / s_k),     s_k = max|k| / r  over the calibration tokens         (`activations.py`, per tensor)

keys after the rotation by position, as they lie in the cache; padding is not counted. What exceeds the calibrated range
later is cut off at its end.

    calibrate_kv_cache(model, batches, "e4m3")                                    # sets `model.. .attention.kv_scales`
    model(ids, past_key_values=quantized_cache(model), use_cache=True)            # and so does `generate`
    export(model, folder, "compressed_tensors", tokenizer_dir)                    # writes k_scale and v_scale

The weights may be quantized before or after; calibrate afterwards, on what the finished model caches. A model that
`export` wrote rounds its cache by itself when transformers loads it (compressed-tensors hooks the attention modules),
in a pass without a cache, too. vLLM stores e4m3 only.

Measured, KL in nats a token (4.2 M seedling | 0.26 M Llama, 8192 tokens to calibrate on): int8 0.0079 | 0.028, e4m3
0.073 | 0.078; bfloat16 throughout 0.0089 | 0.0018. Keys make 80 to 99 % of it: a few of their channels are large
whatever the token, and e4m3 is off by up to 6 % there, where an integer is off by half a step as everywhere.

Rejected: a step for each head, which vLLM reads (int8 0.0061 | 0.022, e4m3 no better), and one for each channel of the
keys (Liu et al. 2024, KIVI, arXiv 2402.02750), which no runtime reads. The arithmetic is tested against
compressed-tensors' `QuantizedKVCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from quant.activations import Activations
from quant.calibrate import Batch, require
from quant.errors import QuantError

if TYPE_CHECKING:
    from transformers import Cache

PROJECTIONS = ("k_proj", "qkv_proj", "kv_b_proj")


class KVScales(nn.Module):
    """What an attention module's `kv_scales` is: steps float32 [1] that keep their type when the model changes its."""

    k_scale: Tensor
    v_scale: Tensor

    def __init__(self, activations: Activations, k_scale: Tensor, v_scale: Tensor) -> None:
        super().__init__()
        self.activations = activations
        self.register_buffer("k_scale", k_scale)
        self.register_buffer("v_scale", v_scale)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b, heads, t, d] as they come out of the cache."""
        round = self.activations.round
        return round(keys, self.k_scale).to(keys.dtype), round(values, self.v_scale).to(values.dtype)

    def extra_repr(self) -> str:
        return str(self.activations.format)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KVScales:
        before = self.k_scale, self.v_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.k_scale, self.v_scale = (old.to(self.k_scale.device) for old in before)
        return self


def calibrate_kv_cache(model: nn.Module, batches: Sequence[Batch], format: Literal["int8", "e4m3"] = "e4m3") -> None:
    """Give each attention module of `model` its `kv_scales`, from what it caches on `batches`.

    Raises QuantError without batches, where nothing is cached (an encoder), and for NaN or infinite keys or values.
    """
    require(batches, "the kv cache")
    rounding = Activations(format, "tensor", dynamic=False)
    attentions = attention_modules(model)
    peaks: dict[int, Tensor] = {}
    mask = torch.empty(0)

    def note(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.stack([x.transpose(1, 2)[mask].abs().amax().float() for x in (keys, values)])
        if not seen.isfinite().all():
            raise QuantError(f"layer {layer}: calibration keys or values hold NaN or Inf; check the model's dtype")
        peaks[layer] = torch.maximum(peaks[layer], seen) if layer in peaks else seen
        return keys, values

    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for batch in batches:
            ids, attended = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            mask = attended.bool()
            if not mask.any():
                continue
            with torch.no_grad():
                model(input_ids=ids, attention_mask=attended, past_key_values=_cache(model, note), use_cache=True)
    finally:
        model.train(training)
    for layer, (k, v) in peaks.items():
        attentions[layer].kv_scales = KVScales(rounding, rounding.scale(k.reshape(1)), rounding.scale(v.reshape(1)))


def quantized_cache(model: nn.Module) -> Cache:
    """An empty cache for `model` that rounds what is put into it: a transformers `DynamicCache`.

    Raises QuantError where `calibrate_kv_cache` was not called.
    """
    scales = {layer: held for layer, m in attention_modules(model).items() if (held := kv_scales(m)) is not None}
    if not scales:
        raise QuantError(f"{type(model).__name__} has no scales for its cache; call calibrate_kv_cache first")

    def rounded(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return scales[layer](keys, values) if layer in scales else (keys, values)  # type: ignore[no-any-return]

    return _cache(model, rounded)


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The modules that write to the cache, by the layer they write to. Raises QuantError where there are none."""
    found = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and any(hasattr(module, name) for name in PROJECTIONS):
            found[layer] = module
    if not found:
        raise QuantError(f"{type(model).__name__} has no attention that caches; pass a causal language model")
    return found


def kv_scales(module: nn.Module) -> KVScales | None:
    """The steps of an attention module's cache, None where it has none."""
    held = getattr(module, "kv_scales", None)
    return held if isinstance(held, KVScales) else None


def _cache(model: Any, through: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Cache:
    """A `DynamicCache` whose every new keys and values go through a function of (layer, keys, values)."""
    from transformers import DynamicCache

    class Through(DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            return super().update(*through(layer_idx, key_states, value_states), layer_idx, *args, **kwargs)

    return Through(config=model.config)
