"""A student small enough for a test: a random Llama of two layers, its tokenizer, and a little padded traffic."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from infra.seedling.tokenizer import save, train
from quant.calibrate import Batch

SAID = (
    "Where is my order 48213? It should have come to 12 Elm Street, Lyon on 2026-03-05.",
    "please cancel it",
    "I'd like to return the blue linen shirt, size M; it doesn't fit and the box was open.",
    "Grüße aus München! Können Sie mir sagen, wann das Paket kommt?",
    "what are your opening hours on Sunday",
    "send the receipt to ben.novak@example.com, not to the old address",
    "two blankets and a lamp\n\tfor 39.90 each",
    "thanks, that is all",
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train(SAID)


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.15,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


@pytest.fixture(scope="session")
def original(config: LlamaConfig) -> LlamaForCausalLM:
    """Not to be changed by a test."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model(original: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy to quantize."""
    return deepcopy(original)


@pytest.fixture(scope="session")
def batches(tokenizer: PreTrainedTokenizerFast) -> list[Batch]:
    """24 sequences in 3 batches, right-padded, the second half of each an answer."""
    made: list[Batch] = []
    for turn in range(3):
        texts = [f"{said} {SAID[(i + turn + 1) % len(SAID)]}" for i, said in enumerate(SAID)]
        coded = tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = coded["input_ids"], coded["attention_mask"]
        answers = mask.bool() & (torch.arange(ids.shape[1]) >= mask.sum(-1, keepdim=True) // 2)
        made.append({"input_ids": ids, "attention_mask": mask, "loss_mask": answers})
    return made
