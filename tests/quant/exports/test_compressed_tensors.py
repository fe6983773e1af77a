"""The folder, loaded by transformers: the same logits as our own model."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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
from quant.activations import Activations, calibrated
from quant.anatomy import all_linears
from quant.calibrate import Batch, walk
from quant.exports.compressed_tensors import read
from quant.grid import FloatGrid, Grid, IntGrid
from quant.kv_cache import calibrate_kv_cache, quantized_cache
from quant.linear import QuantLinear
from quant.methods import GPTQ, RTN, Method
from quant.methods.fp8 import FP8

METHODS: list[Any] = [
    GPTQ(bits=4), RTN(bits=8), RTN(bits=8, group_size=None), GPTQ(bits=3, group_size=64, embedding_bits=16),
    RTN(bits=2, group_size=None), RTN(bits=5, group_size=256), RTN(bits=6, group_size="tensor"), FP8(),
    FP8(group_size="tensor", activations="static"), FP8(group_size="block"), FP8(group_size="block", activations=None),
]  # fmt: skip
INT8 = [
    (IntGrid(8, True, None), Activations("int8", "token", True)),
    (IntGrid(8, True, None), Activations("int8", "tensor", False)),
    (IntGrid(4), Activations("int8", "group", True)),
]
MIXTURES: list[list[Grid]] = [
    [IntGrid(2), IntGrid(3), IntGrid(4), IntGrid(8)],
    [IntGrid(4), FloatGrid("e4m3"), IntGrid(8, True, None)],
]


@torch.no_grad()
def logits(model: nn.Module, batch: Batch, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **kwargs).logits


@pytest.fixture
def wide(config: LlamaConfig) -> LlamaForCausalLM:
    """Rows of 128 and 256 inputs, which groups of 64 and of 128 divide."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **WIDE})).eval()


LAYER = "layers.0.self_attn.k_proj.weight"
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def scheme_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_transformers_computes_the_same_logits(
    method: Method, batches: list[Batch], wide: nn.Module, tokenizer_dir: Path, tmp_path: Path
) -> None:
    quantize(wide, method, batches)
    folder = export(wide, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, batches[0]), logits(wide, batches[0]))
    state = read(folder)
    for name, layer in wide.named_modules():
        if isinstance(layer, QuantLinear) and name != "lm_head":
            assert torch.equal(state[f"{name}.weight"], layer.dequantize())


@pytest.mark.parametrize(("grid", "rounding"), INT8, ids=str)
def test_transformers_rounds_inputs_as_we_do(
    grid: Grid, rounding: Activations, batches: list[Batch], wide: nn.Module, tokenizer_dir: Path, tmp_path: Path
) -> None:
    for stage in walk(wide, batches):
        steps = {} if rounding.dynamic else calibrated(stage, rounding)
        for name, linear in stage.layers.items():
            stage.replace(name, QuantLinear.round(linear, grid, activations=rounding, input_scale=steps.get(name)))
    loaded = AutoModelForCausalLM.from_pretrained(export(wide, tmp_path / "m", "compressed_tensors", tokenizer_dir))
    assert torch.equal(logits(loaded, batches[0]), logits(wide, batches[0]))


@pytest.mark.parametrize("family", ["mx", "nv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fp4_loads_as_bfloat16(
    dtype: torch.dtype, family: Any, config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    wide = LlamaConfig(**{**config.to_dict(), **WIDE})
    model = quantize(AutoModelForCausalLM.from_config(wide, dtype=dtype).eval(), RTN(bits=4, grid=family))
    folder = export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    far = (logits(loaded, batches[0]).float() - logits(model, batches[0]).float()).abs().max()
    assert far == 0 if dtype == torch.bfloat16 else far < 0.3  # of logits up to 8
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(read(folder)[f"{name}.weight"], model.get_submodule(name).dequantize())


@pytest.mark.parametrize("grids", MIXTURES, ids=str)
def test_layers_may_differ(
    grids: list[Grid], wide: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    chosen = {name: grids[i % len(grids)] for i, (name, _) in enumerate(all_linears(wide))}
    RTN().apply(wide, (), lambda done, total, what: None, chosen)
    folder = export(wide, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, batches[0]), logits(wide, batches[0]))
    scheme = scheme_of(folder)
    groups = scheme["config_groups"].values()
    assert sorted(name for group in groups for name in group["targets"]) == sorted(chosen)
    several = len({group["format"] for group in groups}) > 1
    assert scheme["format"] == ("mixed-precision" if several else "pack-quantized")
    assert scheme["ignore"] == ["lm_head"]
    for name in chosen:
        assert torch.equal(read(folder)[f"{name}.weight"], wide.get_submodule(name).dequantize())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_of_its_own_may_be_quantized(
    bits: Any, config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "tie_word_embeddings": False})).eval()
    quantize(model, RTN(bits=4, head_bits=bits))
    folder = export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, batches[0]), logits(model, batches[0]))
    targets = [group["targets"] for group in scheme_of(folder)["config_groups"].values()]
    assert targets == ([["Linear", "lm_head"]] if bits == 4 else [["Linear"], ["lm_head"]])
    assert scheme_of(folder)["ignore"] == []


@pytest.mark.parametrize("format", ["int8", "e4m3"])
@pytest.mark.parametrize("quantized", [True, False])
def test_transformers_rounds_the_cache_as_we_do(
    quantized: bool, format: Any, model: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    if quantized:
        quantize(model, RTN(bits=4))
    calibrate_kv_cache(model, batches, format)
    loaded = AutoModelForCausalLM.from_pretrained(export(model, tmp_path / "m", "compressed_tensors", tokenizer_dir))
    ours = logits(model, batches[0], past_key_values=quantized_cache(model), use_cache=True)
    assert torch.equal(logits(loaded, batches[0], use_cache=True), ours)
    assert torch.equal(loaded.model.layers[1].self_attn.k_scale, model.model.layers[1].self_attn.kv_scales.k_scale)
    said = scheme_of(tmp_path / "m")["kv_cache_scheme"]
    assert (said["type"], said["strategy"]) == ({"int8": "int", "e4m3": "float"}[format], "tensor")


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


def test_dense_tensors_stay_as_small_as_they_are(config: LlamaConfig, tokenizer_dir: Path, tmp_path: Path) -> None:
    model = quantize(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), FP8(embedding_bits=16))
    folder = export(model, tmp_path / "model", "compressed_tensors", tokenizer_dir)
    with safe_open(folder / "model.safetensors", "pt") as file:
        kinds = [file.get_slice(f"model.{name}").get_dtype() for name in ("embed_tokens.weight", f"{LAYER}_scale")]
    assert kinds == ["BF16", "F32"]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


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


def test_a_damaged_file_is_named(model: nn.Module, tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = export(quantize(model, RTN(bits=4)), tmp_path / "model", "compressed_tensors", tokenizer_dir)
    (folder / "model.safetensors.sha256").unlink()
    assert len(read(folder)) == 20
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(QuantError, match=r"^.*/model\.safetensors is damaged \(.*\); copy or export it again$"):
        read(folder)
    file.unlink()
    with pytest.raises(QuantError, match=r"^there is no .*/model\.safetensors; copy or export it again$"):
        read(folder)


def test_shards_are_read_as_one_file_is(model: nn.Module, tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = export(quantize(model, RTN(bits=4)), tmp_path / "model", "compressed_tensors", tokenizer_dir)
    whole, tensors = read(folder), load_file(folder / "model.safetensors")
    where = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}  # scales away from their integers
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "model.safetensors").unlink()
    parts = read(folder)
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


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
