"""The file, read by gguf's own reader and run by llama.cpp: the same weights, tokens and answers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest
import torch
import xllamacpp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from quant import QuantError, export, quantize
from quant.calibrate import Batch
from quant.exports.gguf import read
from quant.linear import QuantWeight
from quant.methods import GPTQ, RTN, Method

METHODS = [GPTQ(bits=4), GPTQ(bits=4, symmetric=False), RTN(bits=8), RTN(bits=4, embedding_bits=16)]

TOLERANCE = 0.1  # nats


@contextmanager
def llama_cpp(file: Path) -> Iterator[xllamacpp.Server]:
    """llama.cpp's server in this process, one slot, one thread."""
    asked = xllamacpp.CommonParams()
    asked.model.path = str(file)
    asked.n_ctx, asked.n_parallel = 256, 1
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


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_reader_of_gguf_finds_our_numbers(
    method: Method, model: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    quantize(model, method, batches)
    file = export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir)
    theirs = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(file).tensors}
    ours = read(file)
    for name, module in model.named_modules():
        if isinstance(module, QuantWeight) and name != "lm_head":
            assert torch.equal(ours[f"{name}.weight"], module.dequantize())
    for stem, name in (("blk.1.ffn_down", "model.layers.1.mlp.down_proj"), ("token_embd", "model.embed_tokens")):
        assert torch.equal(theirs[f"{stem}.weight"], ours[f"{name}.weight"])
    assert theirs.keys() >= {"output_norm.weight", "blk.0.attn_q.weight"}
    assert "output.weight" not in theirs  # tied


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_llama_cpp_gives_the_model_s_probabilities(
    method: Method, model: nn.Module, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    quantize(model, method, batches)
    check_against_llama_cpp(model, batches, export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "family", [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)], ids=["llama", "qwen2"]
)
def test_llama_cpp_runs_either_architecture(
    family: tuple[Any, Any], tied: bool, config: LlamaConfig, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    shape = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "head_dim")}
    torch.manual_seed(0)
    model = family[1](family[0](**{**shape, "tie_word_embeddings": tied, "attention_bias": True})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    check_against_llama_cpp(model, batches, export(model, tmp_path / "model.gguf", "gguf", tokenizer_dir))


def check_against_llama_cpp(model: nn.Module, batches: list[Batch], file: Path) -> None:
    """The next token's probabilities after prompts of several lengths, within what int8 activations cost."""
    with llama_cpp(file) as server:
        for ids, length in zip(batches[0]["input_ids"].tolist(), (1, 2, 5, 9, 17), strict=False):
            expected = log_probabilities(model, ids[:length])[-1]
            found = next_token(server, ids[:length], said=model.config.vocab_size - 1)
            assert len(found) == 10
            assert all(abs(logprob - float(expected[i])) < TOLERANCE for i, logprob in found.items())


@pytest.fixture(scope="module")
def running(
    original: nn.Module, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[xllamacpp.Server]:
    """llama.cpp with the tokenizer of the tests."""
    with llama_cpp(export(original, tmp_path_factory.mktemp("gguf") / "model.gguf", "gguf", tokenizer_dir)) as server:
        yield server


def post(server: xllamacpp.Server, route: str, body: dict[str, Any]) -> dict[str, Any]:
    return dict(httpx.post(f"{server.listening_address}/{route}", json=body).raise_for_status().json())


pieces = st.text(max_size=30) | st.sampled_from(
    [
        "<|user|>",
        "<tool_call>",
        "</tool_call>",
        "<|end|>",
        "  ",
        "\n\n",
        "don't",
        "12345",
        "é",
        "e\u0301",
        "🙂",
        "<|",
        "|>",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(pieces, max_size=8).map("".join))
@example(text='where is 48213?\n<tool_call>{"name":"track","arguments":{"id":"A-1"}}</tool_call><|end|>')
def test_text_has_the_same_tokens(running: xllamacpp.Server, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    theirs = post(running, "tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    assert theirs == tokenizer(text)["input_ids"]


def test_a_conversation_has_the_same_prompt(running: xllamacpp.Server, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "where is my order"}, {"role": "assistant", "content": "on its way"},
                {"role": "user", "content": "since when?"}]  # fmt: skip
    theirs = post(running, "apply-template", {"messages": messages})["prompt"]
    assert theirs == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize(
    ("token", "shown"), [("<tool_call>", "<tool_call>"), ("</tool_call>", "</tool_call>"), ("<|user|>", "")]
)
def test_tags_are_seen_in_an_answer_and_roles_are_not(
    running: xllamacpp.Server, tokenizer: PreTrainedTokenizerFast, token: str, shown: str
) -> None:
    said = {str(tokenizer.convert_tokens_to_ids(token)): 100}
    answer = running.handle_completions({"prompt": "hi", "max_tokens": 1, "logit_bias": said})
    assert answer["choices"][0]["text"] == shown


def test_an_answer_ends_at_the_end_token(running: xllamacpp.Server, tokenizer: PreTrainedTokenizerFast) -> None:
    end = {str(tokenizer.eos_token_id): 100}
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "logit_bias": end}
    answer = running.handle_chat_completions(asked)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1


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

    for method, said in (
        (RTN(bits=3), "not int3 in groups of 32; quantize with those, or export compressed_tensors"),
        (RTN(bits=4, group_size=None), "not int4 in groups of a row"),
        (RTN(bits=8, symmetric=False), "not int8 with minima in groups of 32"),
    ):
        refused(quantize(deepcopy(original), method), said)

    def changed(**options: Any) -> nn.Module:
        return LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **options}))

    refused(changed(hidden_act="gelu"), "cannot hold hidden_act 'gelu'")
    refused(changed(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "rope_type 'linear'")
    refused(changed(vocab_size=100), r"tokenizer has \d+ tokens, the model 100")
    huge = deepcopy(original)
    huge.get_submodule("model.layers.0.mlp.up_proj").weight.data[0, 0] = 1e6
    refused(huge, r"model\.layers\.0\.mlp\.up_proj: a weight exceeds fp16's 65504")
    refused(original, "no tokenizer in", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec["model"].update(byte_fallback=True), "byte-level BPE split as GPT-2 or Qwen2 do"),
        (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "byte-level BPE split as GPT-2"),
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "byte-level BPE split as GPT-2"),
        (lambda spec: spec["added_tokens"][3].update(lstrip=True), r"token '<\|user\|>' takes spaces"),
    ],
)
def test_a_tokenizer_it_would_change_is_refused(
    change: Callable[[dict[str, Any]], None], said: str, original: nn.Module, tokenizer_dir: Path, tmp_path: Path
) -> None:
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text((tokenizer_dir / "tokenizer_config.json").read_text())
    with pytest.raises(QuantError, match=said):
        export(original, tmp_path / "model.gguf", "gguf", tmp_path)


def test_begin_and_end_tokens_are_added_as_the_tokenizer_does(
    original: nn.Module, tokenizer: PreTrainedTokenizerFast, tokenizer_dir: Path, tmp_path: Path
) -> None:
    spec, options = (
        json.loads((tokenizer_dir / f"{name}.json").read_text()) for name in ("tokenizer", "tokenizer_config")
    )
    bos = "<|system|>"
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.convert_tokens_to_ids(bos)], "tokens": [bos]}},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options | {"bos_token": bos}))
    with llama_cpp(export(original, tmp_path / "model.gguf", "gguf", tmp_path)) as server:
        theirs = post(server, "tokenize", {"content": "hello", "add_special": True})["tokens"]
    assert theirs == [tokenizer.convert_tokens_to_ids(bos), *tokenizer("hello")["input_ids"]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))  # the same, and no token called bos
    with pytest.raises(QuantError, match="tokenizer wraps text in"):
        export(original, tmp_path / "model.gguf", "gguf", tmp_path)
