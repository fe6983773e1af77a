"""llama.cpp with our file splits text as the Hugging Face tokenizer does, or the tokenizer is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unicodedata import normalize

import pytest
import xllamacpp
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quant import QuantError, export
from quant.exports.gguf_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, SPACE, model_of
from tests.quant.conftest import SAID
from tests.quant.exports.test_gguf import SEEDLING, llama_cpp, post

PIECES = [
    *"the order don't I'LL we've Timmy 0 7 42 12345 1,000.50 3½ ² Ⅷ ٣ $ % _ -- — ... !!! == ==== =====".split(),
    *"é e\u0301 ñ Straße 日本語 Привет مرحبا 한국어 🙂 👩\u200d👩\u200d👧 🇫🇷 ▁ ▁▁ ſ".split(),
    *"<s> </s> <unk> <|user|> <|end|> <tool_call> </tool_call> <| |> <s s> <0x0A> <0xFF> \\xff \\u00e9".split(),
    *"</div> http://a.b/c?d=e&f aaaa".split(), "once upon a time", "def f(x):\n    return x**2", '{"a": [1, 2]}',
    " ", "  ", "   ", "     ", "\t", "\n", "\n\n", "\r\n", "\n \n", " \n",
    "\u00a0", "\u200b", "\ufeff", "\ufffd", "\x00", "\x01", "\x7f", "\u0085", "\u2028",
]  # fmt: skip
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x3000, 0x9FFF), (0x1F300, 0x1FA00), (0x20, 0xD7FF)]


def strings(count: int) -> list[str]:
    """Words, code, numbers, runs of spaces, special tokens and characters of any script, in all mixtures."""
    rng = Random(1)

    def piece() -> str:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(PIECES)
        if kind < 0.8:
            return "".join(chr(rng.randrange(*rng.choice(SCRIPTS))) for _ in range(rng.randrange(1, 6)))
        return rng.choice(SAID)[: rng.randrange(60)]

    return ["".join(piece() for _ in range(rng.randrange(9))) for _ in range(count)]


def tokens(server: xllamacpp.Server, texts: list[str]) -> list[list[int]]:
    """llama.cpp's tokens of each text: one request, the texts told apart by an id that there is not."""
    content = [part for text in texts for part in (text, -1)]
    found: list[list[int]] = [[]]
    for token in post(server, "tokenize", {"content": content, "parse_special": True})["tokens"]:
        found.append([]) if token == -1 else found[-1].append(token)
    return found[:-1]


def exported(library: Tokenizer, folder: Path, **settings: Any) -> Path:
    """A file with this tokenizer, and a model that is as small as one can be."""
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shape = LlamaConfig(
        vocab_size=library.get_vocab_size(), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return export(LlamaForCausalLM(shape), folder / "model.gguf", "gguf", folder)


def check(library: Tokenizer, folder: Path, count: int, nfc: bool = False, **settings: Any) -> None:
    texts = [normalize("NFC", text) if nfc else text for text in strings(count)]
    with llama_cpp(exported(library, folder, **settings)) as server:
        found = tokens(server, texts)
        whole = post(server, "tokenize", {"content": "hello there", "add_special": True})["tokens"]
    expected = [encoded.ids for encoded in library.encode_batch(texts, add_special_tokens=False)]
    assert [text for text, a, b in zip(texts, found, expected, strict=True) if a != b] == []
    assert whole == library.encode("hello there").ids


@pytest.mark.parametrize("name", ["stories260k-llama", "babyllama-tok105-llama"])
def test_sentencepiece_tokenizers_of_real_models(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared.parent / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder}")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    check(Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path, 10_000, **settings)


def test_what_a_real_model_says_is_text_again(shared: Path, tmp_path: Path) -> None:
    folder = shared.parent / "models" / "stories260k-llama"
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder}")
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    file = exported(library, tmp_path, **settings)
    kinds = GGUFReader(file).get_field("tokenizer.ggml.token_type").contents()
    assert kinds[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    with llama_cpp(file) as server:
        ids = library.encode("Once a 🙂 and\n 日本", add_special_tokens=False).ids  # most of it as bytes
        assert post(server, "detokenize", {"tokens": ids})["content"].strip() == "Once a 🙂 and\n 日本"
        asked = {"prompt": "hi", "max_tokens": 1, "logit_bias": {str(library.token_to_id("<unk>")): 100}}
        assert server.handle_completions(asked)["choices"][0]["text"] == ""


def test_the_seedling_s_tokenizer(tmp_path: Path) -> None:
    folder = SEEDLING / "models/student"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    check(Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path, 10_000, **settings)


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), bytes_only])


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    library = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    library.pre_tokenizer, library.decoder = pre_tokenizer, decoders.ByteLevel()
    learning = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>", "<|user|>"],
        show_progress=False,
    )  # fmt: skip
    library.train_from_iterator([*SAID, " ".join(PIECES), *"12 123 1234 'll 's 日本 \n\n".split(" ")] * 3, learning)
    return library


SMOLLM = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


@pytest.mark.parametrize(
    ("name", "pre_tokenizer", "ignore_merges"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        ("qwen2", split(QWEN2_SPLIT), False),
        ("llama-bpe", split(LLAMA3_SPLIT), True),
        ("dbrx", split(LLAMA3_SPLIT), False),
        ("smollm", SMOLLM, False),
    ],
)
def test_byte_level_tokenizers_by_their_pre_tokenizer(
    name: str, pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool, tmp_path: Path
) -> None:
    library = byte_level(pre_tokenizer, ignore_merges)
    if name == "qwen2":
        library.normalizer = normalizers.NFC()
    assert model_of(json.loads(library.to_str())).pre == name
    check(library, tmp_path, 2000, nfc=name == "qwen2", eos_token="<|end|>")


def characters(merges: list[tuple[str, str]], ignored: int = 0) -> Tokenizer:
    """BPE over characters with byte fallback, made of these merges."""
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))])}
    for text in (*sorted({c for pair in merges for c in "".join(pair)}), *("".join(pair) for pair in merges)):
        vocab.setdefault(text, len(vocab))
    library = Tokenizer(models.BPE(vocab, merges[ignored:], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Replace(" ", SPACE)
    return library


TWO_PLACES = [("a", "b"), ("c", "d"), ("ab", "c"), ("b", "c"), ("a", "bc")]
MERGES = [(SPACE, "t"), ("h", "e"), (SPACE + "t", "he"), (SPACE, SPACE), (SPACE + SPACE, SPACE + SPACE), ("o", "r")]


def test_byte_fallback_without_a_space_in_front(tmp_path: Path) -> None:
    library = characters(MERGES)  # as Gemma's, which splits at spaces that are no more
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    assert model_of(json.loads(library.to_str()))[:3] == ("llama", None, False)
    check(library, tmp_path, 2000, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("prefix", [True, False], ids=["space in front", "none"])
def test_unigram(prefix: bool, tmp_path: Path) -> None:
    library = Tokenizer(models.Unigram())
    if prefix:
        library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learning = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(SAID * 3, learning)
    check(library, tmp_path, 2000, bos_token="<s>", eos_token="</s>")


def metaspace(scheme: str) -> Tokenizer:
    library = characters(MERGES)
    library.normalizer = None
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return library


def normalized_token() -> Tokenizer:
    library = characters(MERGES)
    library.add_tokens(["<tool_call>"])
    return library


def words() -> Tokenizer:
    library = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (lambda: metaspace("first"), "puts a space before a text as Metaspace 'first' does.*set the scheme to 'never'"),
        (lambda: metaspace("always"), "as Metaspace 'always' does"),
        (lambda: characters(MERGES, ignored=2), "does not merge .* gguf would; export compressed_tensors"),
        (lambda: characters(TWO_PLACES), "merges 'abc' at two places"),
        (normalized_token, "'<tool_call>' is looked for in normalized text"),
        (words, "not this WordLevel after Whitespace; export compressed_tensors"),
        (lambda: byte_level(split(r"\p{L}+")), "not this BPE after Split, ByteLevel"),
        (lambda: byte_level(split(QWEN2_SPLIT), ignore_merges=True), "not this BPE after Split, ByteLevel"),
        (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "not this BPE after ByteLevel"),
    ],
)
def test_a_tokenizer_it_would_change_is_refused(library: Callable[[], Tokenizer], said: str, tmp_path: Path) -> None:
    with pytest.raises(QuantError, match=said):
        exported(library(), tmp_path)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.fixture(scope="module")
def running(
    original: nn.Module, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[xllamacpp.Server]:
    """llama.cpp with the tokenizer of the tests."""
    with llama_cpp(export(original, tmp_path_factory.mktemp("gguf") / "model.gguf", "gguf", tokenizer_dir)) as server:
        yield server


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "not this BPE after Lowercase, ByteLevel"),
        (lambda spec: spec["added_tokens"][3].update(lstrip=True), r"token '<\|user\|>' takes spaces"),
    ],
)
def test_a_changed_tokenizer_is_refused(
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
