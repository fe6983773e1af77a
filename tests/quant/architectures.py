"""A tiny random model of each architecture, with gains and biases that are neither 1 nor 0 nor all the same."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from quant.calibrate import Batch

VOCABULARY = 96
ENCODERS = {"bert": AutoModelForMaskedLM, "roberta": AutoModel, "modernbert": AutoModel}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {},
}
ARCHITECTURES = (*DECODERS, *ENCODERS)
ROTATABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3")


def build(name: str, dtype: torch.dtype = torch.float32, blocks: int = 2) -> nn.Module:
    """Two blocks of hidden size 64; decoders with four heads that share two keys."""
    shared = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": blocks,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    }  # fmt: skip
    if name in DECODERS:
        config = AutoConfig.for_model(name, **shared, num_key_value_heads=2, **DECODERS[name])
    else:
        config = AutoConfig.for_model(name, **shared)
    torch.manual_seed(0)
    model: nn.Module = ENCODERS.get(name, AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(0.15 / parameter.std())
    return model.to(dtype)


def batches() -> list[Batch]:
    """Two batches of four sequences, the last of each padded."""
    ids = torch.randint(3, VOCABULARY, (2, 4, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, 3, 16:] = 0
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]


@torch.no_grad()
def says(model: nn.Module) -> Tensor:
    """Logits, or hidden states where there is no head, at the attended positions of the first batch."""
    batch = batches()[0]
    out = model(**batch)
    found: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return found[batch["attention_mask"].bool()].float()


def distance(model: nn.Module, wanted: Tensor) -> float:
    """How far what `model` says is from `wanted`, relative to its size."""
    return float((says(model) - wanted).norm() / wanted.norm())
