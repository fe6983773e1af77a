"""The rounded KV cache: steps from what is really cached, and compressed-tensors' rounding of it."""

from copy import deepcopy
from typing import Any, Literal

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from torch import nn
from transformers import BertConfig, BertModel, DynamicCache, LlamaForCausalLM

from quant import QuantError, quantize
from quant.calibrate import Batch
from quant.exports.compressed_layers import arguments
from quant.kv_cache import calibrate_kv_cache, quantized_cache
from quant.methods import RTN

FORMATS: list[Literal["int8", "e4m3"]] = ["int8", "e4m3"]


@torch.no_grad()
def cached(model: Any, batch: Batch, cache: Any) -> torch.Tensor:
    """Fill the cache and return the logits."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("format", FORMATS)
def test_what_comes_out_is_what_compressed_tensors_would_cache(
    format: Literal["int8", "e4m3"], model: LlamaForCausalLM, batches: list[Batch]
) -> None:
    calibrate_kv_cache(model, batches, format)
    plain, rounded = DynamicCache(config=model.config), quantized_cache(model)
    exact, near = cached(model, batches[0], plain), cached(model, batches[0], rounded)
    held = model.model.layers[0].self_attn.kv_scales  # in later layers the keys differ by the rounding before
    described = QuantizationArgs(**arguments(held.activations))
    for scale, before, after in (
        (held.k_scale, plain.layers[0].keys, rounded.layers[0].keys),
        (held.v_scale, plain.layers[0].values, rounded.layers[0].values),
    ):
        assert torch.equal(after, fake_quantize(before, scale, None, described))
        assert not torch.equal(after, before)
    mask = batches[0]["attention_mask"].bool()
    assert 1e-4 < (near - exact)[mask].norm() / exact[mask].norm() < 0.1


def test_steps_span_the_attended_keys_and_values(model: LlamaForCausalLM, batches: list[Batch]) -> None:
    short: list[Batch] = [{**batch, "attention_mask": batch["attention_mask"].clone()} for batch in batches]
    for batch in short:
        batch["attention_mask"][:, 6:] = 0
    calibrate_kv_cache(model, short, "int8")
    attended, all_of_them = torch.zeros(2, 2), torch.zeros(2, 2)
    for batch in short:
        cache, mask = DynamicCache(config=model.config), batch["attention_mask"].bool()
        cached(model, batch, cache)
        for i, layer in enumerate(cache.layers):
            for j, states in enumerate((layer.keys, layer.values)):
                assert states is not None
                attended[i, j] = max(attended[i, j], states.transpose(1, 2)[mask].abs().max())
                all_of_them[i, j] = max(all_of_them[i, j], states.abs().max())
    held = [layer.self_attn.kv_scales for layer in model.model.layers]
    assert torch.equal(torch.stack([torch.cat([h.k_scale, h.v_scale]) for h in held]), attended / 127.5)
    assert (attended < all_of_them).all()


def test_generating_token_by_token_reads_the_same_cache(model: LlamaForCausalLM, batches: list[Batch]) -> None:
    calibrate_kv_cache(model, batches, "int8")
    ids = batches[0]["input_ids"][:1, :12]
    with torch.no_grad():
        whole = model(input_ids=ids, past_key_values=quantized_cache(model), use_cache=True).logits
        cache = quantized_cache(model)
        steps = [model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-3, atol=1e-3)
    written = model.generate(ids, past_key_values=quantized_cache(model), max_new_tokens=3, do_sample=False)
    assert written.shape[1] <= 15


def test_the_scales_survive_a_float_type_and_weights_quantized_later(
    model: LlamaForCausalLM, batches: list[Batch]
) -> None:
    calibrate_kv_cache(model, batches)
    before = deepcopy(model.model.layers[1].self_attn.kv_scales.state_dict())
    quantize(model, RTN(bits=8)).to(torch.bfloat16)
    after = model.model.layers[1].self_attn.kv_scales.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert cached(model, batches[0], quantized_cache(model)).dtype == torch.bfloat16


def test_a_model_without_scales_or_without_a_cache_is_refused(model: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(QuantError, match="has no scales for its cache; call calibrate_kv_cache first"):
        quantized_cache(model)
    encoder = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50))
    with pytest.raises(QuantError, match="BertModel has no attention that caches"):
        calibrate_kv_cache(encoder, batches)
    with pytest.raises(QuantError, match="the kv cache needs calibration batches, got 0"):
        calibrate_kv_cache(model, [])
