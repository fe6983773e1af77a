"""The folder, loaded by transformers: the same logits as our own model."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from quant import QuantError, export, quantize
from quant.calibrate import Batch
from quant.exports.compressed_tensors import read
from quant.methods import GPTQ, RTN, Method

METHODS = [
    GPTQ(bits=4), RTN(bits=8), RTN(bits=8, group_size=None), GPTQ(bits=3, group_size=64, embedding_bits=16),
    RTN(bits=2, group_size=None),
]  # fmt: skip


@torch.no_grad()
def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_transformers_computes_the_same_logits(
    method: Method, batches: list[Batch], config: LlamaConfig, tokenizer_dir: Path, tmp_path: Path
) -> None:
    # Rows of 96 weights hold no groups of 64.
    model = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "intermediate_size": 128})).eval()
    quantize(model, method, batches)
    loaded = AutoModelForCausalLM.from_pretrained(
        export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    )
    assert torch.equal(logits(loaded, batches[0]), logits(model, batches[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_float_type_holds_every_value(
    dtype: torch.dtype, config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = quantize(AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), RTN(bits=4))
    loaded = AutoModelForCausalLM.from_pretrained(
        export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    )
    assert loaded.dtype == (torch.float16 if dtype == torch.float16 else torch.float32)
    same = model if dtype == loaded.dtype else model.to(loaded.dtype)  # a needless `to` would cut the rotary table
    assert torch.equal(logits(loaded, batches[0]), logits(same, batches[0]))


def test_an_untied_head_and_biases_are_kept(
    config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    shape = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "head_dim")}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**shape, "tie_word_embeddings": False})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    quantize(model, GPTQ(bits=4), batches)
    loaded = AutoModelForCausalLM.from_pretrained(
        export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    )
    assert torch.equal(logits(loaded, batches[0]), logits(model, batches[0]))


def test_a_model_that_was_never_quantized_is_saved_as_it_is(
    original: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    folder = export(original, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, batches[0]), logits(original, batches[0]))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_what_is_read_back_is_what_the_layers_hold(model: nn.Module, tokenizer_dir: Path, tmp_path: Path) -> None:
    quantize(model, RTN(bits=3, group_size=None))
    state = read(export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir))
    for name in ("model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        assert torch.equal(state[f"{name}.weight"], model.get_submodule(name).dequantize())
    assert torch.equal(state["model.norm.weight"], model.get_submodule("model.norm").weight)


def test_a_folder_in_use_keeps_its_other_files(
    model: nn.Module, original: nn.Module, tokenizer_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(original, folder, "compressed_tensors", tokenizer_dir)
    (folder / "flywheel.json").write_text("{}")
    export(quantize(model, RTN(bits=8)), folder, "compressed_tensors", tokenizer_dir)
    assert (folder / "flywheel.json").read_text() == "{}"
    assert "quantization_config" in json.loads((folder / "config.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert len(AutoTokenizer.from_pretrained(folder)) == original.config.vocab_size


def test_an_export_that_fails_leaves_nothing(model: nn.Module, tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantError, match=r"q_proj: compressed_tensors cannot hold fp16 minima.*export gguf"):
        export(quantize(deepcopy(model), RTN(symmetric=False)), tmp_path / "model", "compressed_tensors", tokenizer_dir)
    with pytest.raises(QuantError, match=r"no tokenizer\.json"):
        export(model, tmp_path / "model", "compressed_tensors", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").touch()
    with pytest.raises(QuantError, match="is a file"):
        export(model, tmp_path / "taken", "compressed_tensors", tokenizer_dir)
