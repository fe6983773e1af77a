"""A model that is real in everything but sense: a tiny random Llama, exported as it would be served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quant
from infra.prefix import Prefix
from infra.seedling.tokenizer import save, train

TOOL = {"type": "function", "function": {"name": "track_order", "description": "", "parameters": {"type": "object"}}}
PREFIX = Prefix("You are the assistant of a shop.", (TOOL,))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and tokenizer, as Hugging Face has them, of a Llama that nobody trained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bare")
    tokenizer = train(["where is order 48213 and when does it come to me please"] * 20)
    save(tokenizer, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def artifact(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """artifact(**manifest): a GGUF folder of the bare model with this manifest; another manifest, another hash."""
    from transformers import AutoModelForCausalLM

    model = tmp_path_factory.mktemp("gguf") / "model.gguf"
    quant.export(AutoModelForCausalLM.from_pretrained(bare), model, "gguf", bare)

    def make(**manifest: Any) -> Path:
        folder = tmp_path_factory.mktemp("artifact")
        for file in (*bare.glob("*token*"), *bare.glob("*.jinja"), model):
            shutil.copy(file, folder)
        manifest = {"workload": "shop", "prefix": PREFIX.to_json(), "format": "gguf", "max_tokens": 8, **manifest}
        (folder / "flywheel.json").write_text(json.dumps(manifest))
        return folder

    return make
