"""The file, read by gguf's own reader and run by llama.cpp: the same weights, probabilities and answers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import gguf
import httpx
import pytest
import torch
import transformers
import xllamacpp
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from infra.engines.chat import render
from infra.seedling import services
from quant import QuantError, export, quantize
from quant.activations import Activations
from quant.anatomy import all_linears, quantize_embedding
from quant.calibrate import Batch
from quant.exports.gguf import read
from quant.gguf_blocks import LAYOUTS
from quant.grid import FloatGrid, Grid, IntGrid, KGrid
from quant.linear import QuantLinear, QuantWeight
from quant.methods import GPTQ, RTN, Method

SEEDLING = Path(services.__file__).parent
METHODS = [GPTQ(bits=4), GPTQ(bits=4, symmetric=False), RTN(bits=8), RTN(bits=4, embedding_bits=16)]
TOLERANCE = 0.1  # nats: what activations rounded to int8 cost, where weights are quantized


@contextmanager
def llama_cpp(file: Path, context: int = 256) -> Iterator[xllamacpp.Server]:
    """llama.cpp's server in this process, one slot, one thread."""
    asked = xllamacpp.CommonParams()
    asked.model.path = str(file)
    asked.n_ctx, asked.n_parallel = context, 1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.warmup, asked.fit_params, asked.verbosity = False, False, 0
    yield xllamacpp.Server(asked)


def next_token(server: xllamacpp.Server, ids: list[int], said: int) -> dict[int, float]:
    """Log-probabilities of the ten most likely tokens after `ids`.

    The token that is sampled is `said`, by a bias that the probabilities do not show: an answer that ends within a
    UTF-8 character comes without them.
    """
    asked = {"prompt": ids, "max_tokens": 1, "logprobs": 10, "logit_bias": {str(said): 100}, "cache_prompt": False}
    (token,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    assert token["id"] == said
    return {top["id"]: top["logprob"] for top in token["top_logprobs"]}


@torch.no_grad()
def log_probabilities(model: nn.Module, ids: list[int]) -> Tensor:
    """Of each next token [len(ids), V]."""
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def post(server: xllamacpp.Server, route: str, body: dict[str, Any]) -> dict[str, Any]:
    return dict(httpx.post(f"{server.listening_address}/{route}", json=body, timeout=60).raise_for_status().json())


def check_against_llama_cpp(model: nn.Module, batches: list[Batch], file: Path, tolerance: float = TOLERANCE) -> None:
    """The next token's probabilities after prompts of several lengths."""
    with llama_cpp(file) as server:
        for ids, length in zip(batches[0]["input_ids"].tolist(), (1, 2, 5, 9, 17), strict=False):
            expected = log_probabilities(model, ids[:length])[-1]
            found = next_token(server, ids[:length], said=model.config.vocab_size - 1)
            assert len(found) == 10
            assert all(abs(logprob - float(expected[i])) < tolerance for i, logprob in found.items())


def put_on(model: nn.Module, *grids: Grid) -> nn.Module:
    """`model` with its linears on these grids by turns, each weight at the nearest level."""
    for (name, linear), grid in zip(all_linears(model), cycle(grids), strict=False):
        model.set_submodule(name, QuantLinear.round(linear, grid, clip=False))
    return model


@pytest.fixture
def wide(config: LlamaConfig) -> LlamaForCausalLM:
    """A copy to quantize whose rows are super-blocks."""
    torch.manual_seed(0)
    wider = {**config.to_dict(), "hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**{**wider, "initializer_range": 0.08})).eval()


def check_what_gguf_reads(model: nn.Module, file: Path) -> None:
    """gguf's own dequantizers find the numbers of the model's quantized layers."""
    theirs = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(file).tensors}
    ours = read(file)
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight) and name != "lm_head":
            assert torch.equal(ours[f"{name}.weight"], module.dequantize())
    for stem, name in (("blk.0.ffn_down", "model.layers.0.mlp.down_proj"), ("token_embd", "model.embed_tokens")):
        assert torch.equal(theirs[f"{stem}.weight"], ours[f"{name}.weight"])
    assert theirs.keys() >= {"output_norm.weight", "blk.0.attn_q.weight"}
    assert "output.weight" not in theirs  # tied


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_quantized_model_is_the_same_in_the_file_and_in_llama_cpp(
    method: Method, model: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    quantize(model, method, batches)
    file = export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    check_what_gguf_reads(model, file)
    check_against_llama_cpp(model, batches, file)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_block_type_is_the_same_in_the_file_and_in_llama_cpp(
    name: str, wide: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    grid = LAYOUTS[name].grid
    put_on(wide, grid)
    quantize_embedding(wide, grid)
    file = export(wide, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    check_what_gguf_reads(wide, file)
    named = gguf.LlamaFileType(gguf.GGUFReader(file).get_field("general.file_type").contents()).name
    assert named.startswith(f"MOSTLY_{name}")
    check_against_llama_cpp(wide, batches, file)


def test_a_method_aims_at_k_quants(wide: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path) -> None:
    quantize(wide, GPTQ(bits=4, grid="k", embedding_bits=6), batches)
    file = export(wide, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["token_embd.weight"]) == ("Q4_K", "Q6_K")
    check_what_gguf_reads(wide, file)
    check_against_llama_cpp(wide, batches, file)


def test_layers_on_different_grids_make_one_file(
    wide: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    put_on(wide, KGrid(3), IntGrid(8), FloatGrid("e2m1", 32, "mx"), IntGrid(5, symmetric=False), *[KGrid(6)] * 3)
    quantize_embedding(wide, KGrid(4))
    file = export(wide, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    source = gguf.GGUFReader(file)
    assert Counter(t.tensor_type.name for t in source.tensors if t.tensor_type.name != "F32") == Counter(
        {"Q3_K": 1, "Q8_0": 1, "MXFP4": 1, "Q5_1": 1, "Q6_K": 3, "Q4_K": 1}
    )
    assert source.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q6_K
    check_what_gguf_reads(wide, file)
    check_against_llama_cpp(wide, batches, file)


@pytest.mark.parametrize("start", range(0, len(LAYOUTS), 4))
def test_a_trained_model_gives_the_same_answers(start: int, tmp_path: Path) -> None:
    folder = SEEDLING / "models/student"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    put_on(model, *(layout.grid for layout in list(LAYOUTS.values())[start : start + 4]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng, vocabulary = Random(1), services.Vocabulary((SEEDLING / "services.toml").read_text())
    with llama_cpp(export(model, tmp_path / "model.gguf", "gguf", folder), context=1024) as server:
        for _ in range(3):
            prompt = render(tokenizer, services.lesson(rng, vocabulary)[:-1], prompt=True)
            asked = {"prompt": prompt, "n_predict": 24, "temperature": 0, "return_tokens": True}
            said = post(server, "completion", asked)["tokens"]
            assert said
            expected = log_probabilities(model, prompt + said)[len(prompt) - 1 : -1]
            # Greedy: each token is the likeliest after those before it, or as likely within what int8 costs.
            assert (expected.amax(-1) - expected[range(len(said)), said]).max() < TOLERANCE
            assert (expected.argmax(-1) == torch.tensor(said)).float().mean() > 0.9


FAMILIES = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("Llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "phi3": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_runs_each_architecture(
    family: str, tied: bool, config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    name, options = FAMILIES[family]
    own = ("model_type", "architectures", "head_dim", "hidden_act")
    shared = {k: v for k, v in config.to_dict().items() if k not in own}
    torch.manual_seed(0)
    shape = getattr(transformers, f"{name}Config")(**{**shared, "tie_word_embeddings": tied, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(shape).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    if name == "Gemma" and not tied:
        with pytest.raises(QuantError, match="gemma cannot hold a head of its own"):
            export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir)
        return
    file = export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    check_against_llama_cpp(model, batches, file, tolerance=0.02)  # fp16 in place of float32
    ours = read(file)
    for full, parameter in model.named_parameters():
        assert torch.allclose(ours[full], parameter, rtol=1e-3, atol=1e-5)


def test_a_longer_embedding_is_filled_with_unused_tokens(
    config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "vocab_size": config.vocab_size + 38})).eval()
    check_against_llama_cpp(model, batches, export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir))


def test_what_it_cannot_hold_is_refused_and_leaves_nothing(
    original: nn.Module, config: LlamaConfig, tokenizer_dir: Path, tmp_path: Path
) -> None:
    def refused(model: nn.Module, said: str, tokenizer: Path = tokenizer_dir) -> None:
        with pytest.raises(QuantError, match=said):
            export(model, tmp_path / "out" / "model.gguf", "gguf", tokenizer)
        assert not list(tmp_path.glob("out/*"))

    for grid, said in (
        (IntGrid(3), "not int3 in groups of 32; quantize with those, or export compressed_tensors"),
        (IntGrid(4, group_size=None), "not int4 in groups of a row"),
        (IntGrid(4, group_size="tensor"), "not int4 in groups of a tensor"),
        (IntGrid(4, group_size=64), "not int4 in groups of 64"),
        (IntGrid(8, symmetric=False), "not int8 with minima in groups of 32"),
        (FloatGrid("e4m3", "block"), "not e4m3 with float32 scales in groups of 128 x 128"),
        (FloatGrid("nf4", 32, "fp16"), "not nf4 with fp16 scales in groups of 32"),
        (FloatGrid("e2m1", 16, "nv"), "not e2m1 with nv scales in groups of 16"),
    ):
        refused(put_on(deepcopy(original), grid), rf"model\.layers\.0\.self_attn\.q_proj: gguf holds .*{said}")

    def changed(**options: Any) -> nn.Module:
        return LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **options}))

    ragged = put_on(changed(intermediate_size=80), IntGrid(4))
    refused(ragged, r"layers\.0\.mlp\.down_proj: gguf's Q4_0 has blocks of 32, which do not divide 80 inputs; leave")
    refused(changed(hidden_act="gelu"), "cannot hold hidden_act 'gelu'")
    refused(changed(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "rope_type 'linear'")
    refused(changed(vocab_size=100), r"tokenizer has \d+ tokens, the model 100")
    shape = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
    windowed = transformers.MistralForCausalLM(transformers.MistralConfig(**{**shape, "sliding_window": 64}))
    refused(windowed, "mistral cannot hold a sliding window of 64")
    biased = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**shape, "attention_bias": True}))
    refused(biased, r"qwen3 has no place for model\.layers\.0\.self_attn\.q_proj\.bias")
    refused(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2)), "not 'gpt2'")
    rounding = deepcopy(original)
    layer = rounding.get_submodule("model.layers.1.mlp.up_proj")
    rounded = QuantLinear.round(layer, IntGrid(8), activations=Activations("int8", "token", dynamic=True))
    rounding.set_submodule("model.layers.1.mlp.up_proj", rounded)
    refused(rounding, r"layers\.1\.mlp\.up_proj: gguf cannot say that inputs are rounded to int8 per token")
    cached = deepcopy(original)
    cached.get_submodule("model.layers.0.self_attn").register_buffer("k_scale", torch.ones(1))
    refused(cached, r"llama has no place for model\.layers\.0\.self_attn\.k_scale")
    huge = deepcopy(original)
    huge.get_submodule("model.layers.0.mlp.up_proj").weight.data[0, 0] = 1e6
    refused(huge, r"model\.layers\.0\.mlp\.up_proj: a weight exceeds fp16's 65504")
    refused(original, "no tokenizer in", tmp_path)


def test_a_file_that_is_not_whole_is_named(original: nn.Module, tokenizer_dir: Path, tmp_path: Path) -> None:
    whole = export(original, tmp_path / "model.gguf", "gguf", tokenizer_dir).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 20, 60, *range(100, len(whole), len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(QuantError, match=r"^.*cut\.gguf is not a whole GGUF file \(.*\); copy or export it again$"):
            read(cut)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.gguf")
