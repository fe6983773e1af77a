"""A tokenizer in GGUF's words: llama.cpp splits text by its own code, so a `tokenizer.json` needs the model there that
gives the same tokens, or is refused.

| tokenizer.json                                           | GGUF model | its algorithm                              |
|----------------------------------------------------------|------------|--------------------------------------------|
| BPE over bytes, split as GPT-2, Qwen2, Llama 3 or SmolLM | gpt2       | merges by rank, a pre-tokenizer by name    |
| BPE over characters with byte fallback, `▁` for spaces   | llama      | joins whatever makes the highest score     |
| Unigram, or BPE of single characters without bytes       | t5         | the path of the highest sum of scores      |

**Byte level.** The names known here are those whose regular expression is the tokenizer's own. Qwen's NFC normalizer
has no counterpart: llama.cpp reads text as it comes, and chat clients send NFC.

**Byte fallback (SentencePiece).** The runtime knows no list of merges: it joins two neighbours whenever they make a
token, the highest score first. That is the same only if each way to cut a token into two tokens is a merge, and the
merges of a token follow one another, as in files converted from SentencePiece; its place in that order is then its
score. Others are refused. (Of one token that overlaps with itself, `aaa`, the runtime joins the leftmost, the library
by rank.)

**Unknown tokens.** The `llama` model cannot emit one, so a vocabulary that lacks the 256 bytes goes to `t5`, whose
Viterbi search and whose penalty for unknown characters are those of Unigram. Where each token is one character, any
scores will do.

**Spaces.** `Prepend ▁` puts a space before each stretch of text between special tokens, and so does `add_space_prefix`
in the `llama` model. `t5` does not where the text is nothing but spaces, unless its table of character replacements
says ` ` is `▁`: `_SPACES` is that table. `Metaspace` puts a space only where none is (`always`), or at the start of a
prompt only (`first`), which cannot be said: refused.

**Added tokens** that the model is told apart by (begin, end, padding, `<|role|>`) are CONTROL and never appear in an
answer's text; others, such as `<tool_call>`, are USER_DEFINED: one token when read, plain text when written, which is
what a parser of answers needs.

Tested: 10,000 strings a tokenizer, real ones and small ones of each kind, have the same tokens in both libraries.

Sources: llama.cpp `llama-vocab.cpp`, `convert_hf_to_gguf.py` (`get_vocab_base`, `_set_vocab_sentencepiece`); for the
table, Kanda 2018 (XOR-compressed double arrays), as the same file reads it.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType
from tokenizers import Tokenizer

from quant.errors import QuantError

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _CASELESS + r"\p{N}" + _REST
LLAMA3_SPLIT = _CASELESS + r"\p{N}{1,3}" + _REST
SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WAY_OUT = "export compressed_tensors"


class Model(NamedTuple):
    """How GGUF names a tokenizer's algorithm.

    `pre` is a pre-tokenizer, of gpt2 alone. Of the other two are `prefix`, whether a space goes before a text, and
    `scores`, those of tokens that have one.
    """

    name: str
    pre: str | None = None
    prefix: bool = False
    scores: dict[str, float] | None = None


def add_tokenizer(sink: Any, folder: Path, rows: int) -> None:
    """Add the tokenizer of `folder`, with unused tokens up to the embedding's `rows`, to a GGUF writer.

    Raises QuantError where there is none, where it has more tokens than the model, or where llama.cpp would split text
    differently.
    """
    try:
        library, spec = Tokenizer.from_file(str(folder / "tokenizer.json")), _json(folder / "tokenizer.json")
        settings = _json(folder / "tokenizer_config.json")
    except Exception as problem:  # tokenizers raises bare Exception
        raise QuantError(f"no tokenizer in {folder} ({problem}); pass the folder it was saved to") from problem
    model = model_of(spec)
    if library.get_vocab_size() > rows:
        raise QuantError(f"tokenizer has {library.get_vocab_size()} tokens, the model {rows}; pass the model's own")
    roles = {r: _content(settings.get(f"{r}_token")) for r in ("bos", "eos", "pad")} | {"unk": _unknown(spec, settings)}
    texts, kinds = _tokens(spec, rows, roles, model)

    sink.add_tokenizer_model(model.name)
    sink.add_token_list(texts)
    sink.add_token_types(kinds)
    if model.scores is None:
        sink.add_tokenizer_pre(model.pre)
        sink.add_token_merges([" ".join(pair) for pair in _merges(spec)])
    else:
        sink.add_tokenizer_pre("default")
        sink.add_token_scores([model.scores.get(text, 0.0) for text in texts])
        sink.add_add_space_prefix(model.prefix)
        if model.name == "t5":
            sink.add_remove_extra_whitespaces(False)
            sink.add_precompiled_charsmap(_SPACES)
    for role, text in roles.items():
        if text is not None and (i := library.token_to_id(text)) is not None:
            getattr(sink, f"add_{role}_token_id")(i)
    before, after = _frame(library)
    bos, eos = ([] if (text := roles[r]) is None else [library.token_to_id(text)] for r in ("bos", "eos"))
    if before not in ([], bos) or after not in ([], eos):
        raise QuantError(f"tokenizer wraps text in {before} and {after}: gguf can add bos and eos only; change it")
    sink.add_add_bos_token(bool(before))
    sink.add_add_eos_token(bool(after))
    template = folder / "chat_template.jinja"
    if text := template.read_text() if template.exists() else settings.get("chat_template"):
        sink.add_chat_template(text)


def model_of(spec: dict[str, Any]) -> Model:
    """Which GGUF model splits text as this `tokenizer.json` does. Raises QuantError where none does."""
    model, steps = spec["model"], _flat(spec["pre_tokenizer"], "pretokenizers")
    if model["type"] == "BPE" and not model.get("byte_fallback") and (pre := _pre_tokenizer(spec)):
        return Model("gpt2", pre)
    prefix = _prefix(spec)
    if prefix is not None and model["type"] == "BPE" and not model.get("ignore_merges"):
        if model.get("byte_fallback") and {f"<0x{i:02X}>" for i in range(256)} <= model["vocab"].keys():
            return Model("llama", None, prefix, _scores(spec))
        single = all(len(text) == 1 for text in model["vocab"].keys() - {a["content"] for a in spec["added_tokens"]})
        if single and not model.get("byte_fallback") and model.get("unk_token") and model.get("fuse_unk"):
            return Model("t5", None, prefix, {})
    if prefix is not None and model["type"] == "Unigram" and not model.get("byte_fallback"):
        return Model("t5", None, prefix, dict(model["vocab"]))
    how = ", ".join(step["type"] for step in (*_flat(spec["normalizer"], "normalizers"), *steps)) or "nothing"
    raise QuantError(
        "gguf here holds byte-level BPE split as GPT-2, Qwen2, Llama 3 or SmolLM do, and SentencePiece's models, not "
        f"this {model['type']} after {how}; {_WAY_OUT}"
    )


def _pre_tokenizer(spec: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level BPE splits text before merging, None where it has none."""
    steps, ignore_merges = _flat(spec["pre_tokenizer"], "pretokenizers"), bool(spec["model"].get("ignore_merges"))
    normalizers = [step["type"] for step in _flat(spec["normalizer"], "normalizers")]
    if not steps or steps[-1]["type"] != "ByteLevel" or any(step.get("add_prefix_space") for step in steps):
        return None
    before, splits_too = steps[:-1], steps[-1].get("use_regex", True)
    if splits_too and not normalizers and not ignore_merges:
        if not before:
            return "gpt-2"
        if before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
    if len(before) == 1 and before[0]["type"] == "Split" and not splits_too:
        isolated = before[0].get("behavior") == "Isolated" and not before[0].get("invert")
        match isolated and before[0]["pattern"].get("Regex"), ignore_merges:
            case str(regex), False if regex == QWEN2_SPLIT and normalizers in ([], ["NFC"]):
                return "qwen2"
            case str(regex), False if regex == LLAMA3_SPLIT and not normalizers:
                return "dbrx"  # Llama 3's expression for tokenizers that do merge
            case str(regex), True if regex == LLAMA3_SPLIT and not normalizers:
                return "llama-bpe"
    return None


def _prefix(spec: dict[str, Any]) -> bool | None:
    """Whether a space goes before a text whose spaces become `▁`; None where they do not.

    Raises QuantError where that depends on the text.
    """
    normalizers = _flat(spec["normalizer"], "normalizers")
    steps = _flat(spec["pre_tokenizer"], "pretokenizers")
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    nothing_left = [step for step in steps if step != _SPLIT_AT_SPACES]  # no space is left to split at
    if normalizers in ([prepend, replace], [replace]) and not nothing_left:
        return prepend in normalizers
    if normalizers or len(steps) != 1 or steps[0]["type"] != "Metaspace" or steps[0].get("replacement") != SPACE:
        return None
    if steps[0].get("prepend_scheme") != "never":
        raise QuantError(
            f"tokenizer puts a space before a text as Metaspace {steps[0].get('prepend_scheme')!r} does, gguf before "
            f"every text; set the scheme to 'never', or normalize by Prepend {SPACE!r} and Replace"
        )
    if steps[0].get("split", True) and any(SPACE in text[1:] for text in _vocabulary(spec)):
        return None
    return False


def _scores(spec: dict[str, Any]) -> dict[str, float]:
    """The score of each merged token. Raises QuantError where the merges are not those of a SentencePiece model."""
    vocab = spec["model"]["vocab"]
    place: dict[str, int] = {}
    merges = _merges(spec)
    last = None
    for left, right in merges:
        if (text := left + right) != last and text in place:
            raise QuantError(f"tokenizer merges {text!r} at two places of its order, which gguf cannot say; {_WAY_OUT}")
        place.setdefault(text, len(place))
        last = text
    known = set(merges)
    for text in vocab:
        for i in range(1, len(text)):
            pair = text[:i], text[i:]
            if pair not in known and pair[0] in vocab and pair[1] in vocab and not _BYTE.fullmatch(text):
                raise QuantError(f"tokenizer does not merge {' and '.join(map(repr, pair))}, gguf would; {_WAY_OUT}")
    return {text: -float(i) for text, i in place.items()}


def _tokens(
    spec: dict[str, Any], rows: int, roles: dict[str, str | None], model: Model
) -> tuple[list[str], list[TokenType]]:
    """Text and type of each row of the embedding."""
    texts, kinds = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for text, i in _vocabulary(spec).items():
        byte = model.name == "llama" and _BYTE.fullmatch(text)
        texts[i], kinds[i] = text, TokenType.BYTE if byte else TokenType.NORMAL
    for added in spec["added_tokens"]:
        text, i = added["content"], added["id"]
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise QuantError(
                f"token {text!r} takes spaces or word borders with it, which gguf cannot say; clear its flags"
            )
        if added["normalized"] and model.name != "gpt2" and spec["normalizer"] is not None:
            raise QuantError(f"token {text!r} is looked for in normalized text, gguf does in raw; set normalized false")
        control = added["special"] and (text in roles.values() or re.fullmatch(r"<\|.*\|>", text))
        texts[i], kinds[i] = text, TokenType.CONTROL if control else TokenType.USER_DEFINED
    if model.name != "gpt2" and (unknown := roles["unk"]) in texts:
        kinds[texts.index(unknown)] = TokenType.UNKNOWN
    return texts, kinds


def _frame(library: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    bare, whole = library.encode("a", add_special_tokens=False).ids, library.encode("a").ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _vocabulary(spec: dict[str, Any]) -> dict[str, int]:
    vocab = spec["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {text: i for i, (text, _) in enumerate(vocab)}


def _merges(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in their order; older files hold them as one string with a space between."""
    return [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in spec["model"]["merges"]]


def _unknown(spec: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """The token for what has none: the model's own, else the one the settings name."""
    model = spec["model"]
    if (i := model.get("unk_id")) is not None:
        return str(model["vocab"][i][0])
    return model.get("unk_token") or _content(settings.get("unk_token"))


def _flat(step: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after another."""
    if step is None:
        return []
    return [inner for part in step[parts] for inner in _flat(part, parts)] if step["type"] == "Sequence" else [step]


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    return token["content"] if isinstance(token, dict) else token


_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def _space_table() -> bytes:
    """A table of replacements with one entry, ` ` -> `▁`: a double array, then the replacement.

    A cell's bits 0-7 are the byte that leads to it, bit 8 says that a replacement follows, the bits from 10 on are
    xor-ed with its index to find it. The root is cell 0; the space leads to cell 32, whose replacement, at 0, cell 33
    names.
    """
    cells = [0] * 256
    cells[ord(" ")] = ord(" ") | 1 << 8 | 1 << 10
    return struct.pack("<I256I", 4 * len(cells), *cells) + SPACE.encode() + b"\0"


_SPACES = _space_table()
