"""Folders quantized block by block, against the whole model loaded, quantized and exported."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from quant import QuantError, export, quantize
from quant.anatomy import blocks
from quant.calibrate import Batch
from quant.methods import AWQ, FP8, GPTQ, QAT, RTN, AutoRound, Method, SmoothQuant, SparseGPT, Wanda
from quant.shards import BLOCKWISE, FolderStore, quantize_folder

METHODS = [
    RTN(bits=3), GPTQ(bits=4), GPTQ(bits=4, embedding_bits=16), AWQ(bits=4), AutoRound(steps=2), SmoothQuant(), FP8(),
    Wanda(), SparseGPT(bits=4),
]  # fmt: skip


@pytest.fixture
def source(original: LlamaForCausalLM, tokenizer_dir: Path, tmp_path: Path) -> Path:
    """The tests' model in shards of at most 60 kB, with its tokenizer."""
    folder = tmp_path / "source"
    original.save_pretrained(folder, max_shard_size="60KB")
    for file in tokenizer_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, whichever file it is in."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {m.bits} {m.embedding_bits}")
def test_it_is_what_the_whole_model_gives_bit_for_bit(
    method: Method, source: Path, model: LlamaForCausalLM, batches: list[Batch], tmp_path: Path
) -> None:
    target = quantize_folder(source, tmp_path / "target", method, batches)
    export(quantize(model, method, batches), tmp_path / "expected", "compressed_tensors", source)
    ours, expected = whole(target), whole(tmp_path / "expected")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (target, tmp_path / "expected")]
    assert configs[0] == configs[1]
    assert (target / "tokenizer.json").exists()


def test_every_method_on_the_menu_is_tested() -> None:
    assert {method.name for method in METHODS} == set(BLOCKWISE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_file_with_a_head_of_its_own_and_biases_in_its_own_float_type(
    dtype: torch.dtype, config: LlamaConfig, tokenizer_dir: Path, batches: list[Batch], tmp_path: Path
) -> None:
    shape = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "head_dim", "dtype")}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**shape, "tie_word_embeddings": False})).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    source = tmp_path / "source"
    model.save_pretrained(source)
    assert (source / "model.safetensors").exists()
    method = GPTQ(bits=4, head_bits=8)
    ours = whole(quantize_folder(source, tmp_path / "target", method, batches))
    loaded = quantize(AutoModelForCausalLM.from_pretrained(source), method, batches)
    expected = whole(export(loaded, tmp_path / "expected", "compressed_tensors", tokenizer_dir))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_one_block_is_in_memory_at_a_time(
    source: Path, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, enter = [], FolderStore.enter

    def watched(store: FolderStore, index: int, block: nn.Module) -> None:
        enter(store, index, block)
        states = [block.state_dict() for _, block in blocks(store.model)]
        held.append([i for i, state in enumerate(states) if not all(tensor.is_meta for tensor in state.values())])

    monkeypatch.setattr(FolderStore, "enter", watched)
    quantize_folder(source, tmp_path / "target", GPTQ(bits=4), batches)
    assert held == [[0], [1]]


def test_the_checksums_are_those_of_the_files(source: Path, tmp_path: Path) -> None:
    target = quantize_folder(source, tmp_path / "target", RTN())
    lines = (target / "model.safetensors.sha256").read_text().splitlines()
    files = sorted(target.glob("*.safetensors"))
    assert lines == [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    assert len(files) == 3  # two blocks, and the rest


def test_transformers_loads_the_folder(source: Path, model: nn.Module, batches: list[Batch], tmp_path: Path) -> None:
    target = quantize_folder(source, tmp_path / "target", GPTQ(bits=4), batches)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    quantize(model, GPTQ(bits=4), batches)
    ids = batches[0]["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_what_cannot_be_is_refused_and_nothing_is_left(source: Path, batches: list[Batch], tmp_path: Path) -> None:
    target = tmp_path / "target"

    def refused(said: str, method: Method = RTN()) -> None:  # noqa: B008
        before = sorted(tmp_path.iterdir())
        with pytest.raises(QuantError, match=said):
            quantize_folder(source, target, method, batches)
        assert sorted(tmp_path.iterdir()) == before

    refused("qat needs the whole model in memory", QAT())
    refused("cannot hold fp16 minima", RTN(symmetric=False))
    target.mkdir()
    refused("target exists; give another path")
    target.rmdir()
    everything = whole(source)
    file = next(f for f in sorted(source.glob("*.safetensors")) if any("mlp" in name for name in load_file(f)))
    content = file.read_bytes()
    tensors = load_file(file)
    name = next(name for name in tensors if "mlp" in name)
    save_file({**tensors, name: tensors[name].fill_(float("nan"))}, file)
    refused(f"{name} in .* holds NaN or Inf".replace(".", r"\.").replace(r"\.*", ".*"))
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    refused(f"lacks {name}")
    file.write_bytes(content[:-100])
    refused("is damaged")
    file.write_bytes(content)
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, file)
    refused(f"{name}: .* in {file.name} and .* in the model; config.json belongs to another")
    file.unlink()
    refused(f"there is no .*{file.name}")
    index = source / "model.safetensors.index.json"
    index.write_text("{")
    refused("index.json is damaged")
    index.unlink()
    save_file({n: t for n, t in everything.items() if n != "model.norm.weight"}, source / "model.safetensors")
    refused(r"model\.norm\.weight is in no file of")
    (source / "config.json").unlink()
    refused(r"there is no .*config\.json")


def test_a_folder_that_is_quantized_already_is_refused(source: Path, tmp_path: Path) -> None:
    once = quantize_folder(source, tmp_path / "once", RTN())
    with pytest.raises(QuantError, match="once is quantized already"):
        quantize_folder(once, tmp_path / "twice", RTN())
