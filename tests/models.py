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


# What is said of each word of a made-up classifier, in logits of its labels: it knows two, and is unsure of "and".
WORDS = {
    "?": (0, 0, 0),
    "order": (4, 0, 0),
    "parcel": (8, 0, 0),
    "refund": (0, 4, 0),
    "track": (0, 0, 6),
    "and": (1, 1, 1),
}
LABELS = (
    {"role": "assistant", "content": "shipping"},
    {"role": "assistant", "content": "money"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {
        "name": "track_order", "arguments": "{}"}}]},
)  # fmt: skip


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """labelled(**manifest): a classifier's folder whose logits are the sums of its words', by WORDS."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    source = tmp_path_factory.mktemp("onnx")
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "model.onnx").write_bytes(sums(list(WORDS.values())))

    def make(**manifest: Any) -> Path:
        folder = tmp_path_factory.mktemp("labelled")
        for file in source.iterdir():
            shutil.copy(file, folder)
        told = {"workload": "shop", "labels": LABELS, "threshold": 0.5, "max_length": 8, "prefix": PREFIX.to_json()}
        (folder / "flywheel.json").write_text(json.dumps({**told, "format": "onnx", **manifest}))
        return folder

    return make


def sums(table: list[tuple[int, ...]]) -> bytes:
    """An ONNX model: float32 [b, n], the sum of table[id] over the ids [b, t] that the mask marks."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float", "last"], ["mask"]),
        helper.make_node("Mul", ["rows", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["output"], keepdims=0),
    ]
    constants = {
        "table": np.array(table, np.float32), "last": np.array([-1], np.int64), "middle": np.array([1], np.int64),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "sums",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["b", len(table[0])])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    data: bytes = made.SerializeToString()
    return data
