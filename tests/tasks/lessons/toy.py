"""A tiny model with an adapter, sequences for it, and two teachers: random distributions, and another model."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tasks.lessons.logits import TopK
from tasks.students import Causal
from tasks.students.adapters import fresh
from tasks.training.examples import Example

EXAMPLES = [Example([5 + (7 * n + i) % 40 for i in range(6 + n % 5)], 3, 1.0 + n % 2, True, n) for n in range(24)]
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1)


def small_base(vocabulary: int = 64, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def small_model(dora: bool = False, vocabulary: int = 64) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora)
    return get_peft_model(small_base(vocabulary), config)


def learned_model(adapter: Any, work: Path) -> Any:
    """The small base with an adapter of some kind that has learned something."""
    model = fresh(small_base(), Causal(adapter=adapter, rank=4, alpha=8), work)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_of(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    kinds = ("lora_", "trainable_tokens")
    return {name: p.detach() for name, p in model.named_parameters() if any(kind in name for kind in kinds)}


def answer_logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The log-probability of a whole answer, token by token."""
    ids = prompt + answer
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))


def small_teacher() -> Any:
    """Another model, with a head that is wider than the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=70, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def teacher_of(examples: Sequence[Example]) -> TopK:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for e in examples:
        logp = torch.randn(len(e.ids) - e.prompt, 64, generator=generator).log_softmax(-1)
        values, ids = logp.topk(8)
        found[e.row] = values.half(), ids.int()
    return found
