"""GGUF: one file with model and tokenizer, run by llama.cpp. Our integers go in as they are; none is chosen anew.

| on the grid              | in the file          |   | not on a grid             | in the file |
|--------------------------|----------------------|---|---------------------------|-------------|
| int4, groups of 32       | Q4_0                 |   | linears, embedding, head  | F16         |
| int4 asymmetric, same    | Q4_1                 |   | norms, biases             | F32         |
| int8, groups of 32       | Q8_0                 |   |                           |             |

Blocks of llama.cpp are 32 weights with fp16 scales, so other group sizes and bits cannot be held, and neither can
int8 with a minimum. What a grid does not hold goes to F16: a model in bf16 or float32 loses up to 2^-11 of a weight
there, and is refused where a weight is beyond fp16's range. The K-quants were left out: their scales are themselves
quantized to 6 bits, which would change ours.

**Rotary.** llama.cpp's `llama` architecture rotates neighbouring pairs (0, 1), (2, 3); Hugging Face rotates halves
(0, d/2), (1, d/2 + 1). Rows of the q and k projections are reordered to match; as scales belong to rows this moves
whole rows of integers. `qwen2` rotates halves in both and is left alone.

**Tokenizer.** Byte-level BPE only. A runtime splits text by a named pre-tokenizer; the names known here are the ones
whose regular expression is the tokenizer's own. Added tokens that the model is told apart by (begin, end, padding,
`<|role|>`) are CONTROL and never appear in an answer's text; others, such as `<tool_call>`, are USER_DEFINED: one
token when read, plain text when written, which is what a parser of answers needs.

Sources: ggml `docs/gguf.md`; llama.cpp `convert_hf_to_gguf.py` (`LlamaModel.permute`, `get_vocab_base`).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType
from tokenizers import Tokenizer
from torch import Tensor, nn

from quant import pack
from quant.anatomy import blocks, head, tied
from quant.errors import QuantError
from quant.grid import IntGrid, Scales
from quant.linear import QuantLinear, QuantWeight

ARCHITECTURES = ("llama", "qwen2")
FILE_TYPES = {
    Type.F16: LlamaFileType.MOSTLY_F16, Type.Q4_0: LlamaFileType.MOSTLY_Q4_0, Type.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip
BLOCK_TYPES = {(4, True): Type.Q4_0, (4, False): Type.Q4_1, (8, True): Type.Q8_0}
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(model: nn.Module, path: Path, tokenizer_dir: Path) -> Path:
    """Write one GGUF file; see `quant.export`."""
    config: Any = model.config
    _check(config)
    tensors = _tensors(model, config)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = gguf.GGUFWriter(partial, config.model_type)
    try:
        _add_model(sink, config, _main_type(model))
        _add_tokenizer(sink, tokenizer_dir, config.vocab_size)
        for name, (data, kind) in tensors.items():
            sink.add_tensor(name, data.contiguous().numpy(), raw_dtype=kind)
        sink.write_header_to_file()
        sink.write_kv_data_to_file()
        sink.write_tensors_to_file()
        sink.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The weights a runtime computes with, float32, under their Hugging Face names and in that row order."""
    source = gguf.GGUFReader(path)

    def number(key: str) -> int:
        return int(source.get_field(f"{architecture}.{key}").contents())

    architecture = source.get_field("general.architecture").contents()
    heads, kv_heads, count = (number(k) for k in ("attention.head_count", "attention.head_count_kv", "block_count"))
    names = _names(count)
    state = {}
    for tensor in source.tensors:
        stem, suffix = tensor.name.rsplit(".", 1)
        data = torch.from_numpy(tensor.data.copy())
        weight = _dequantize(data, tensor.tensor_type)
        name = names[stem]
        if turned := _rotary_order(architecture, name, len(weight), heads, kv_heads):
            weight = weight[torch.tensor(turned).argsort()]
        state[f"{name}.{suffix}"] = weight
    return state


def _check(config: Any) -> None:
    """Refuse what the metadata cannot say. Raises QuantError."""
    way = "export compressed_tensors"
    if config.model_type not in ARCHITECTURES:
        raise QuantError(f"gguf holds {' and '.join(ARCHITECTURES)} here, not {config.model_type!r}; {way}")
    rope = config.rope_parameters["rope_type"]
    for what, ok in (
        (f"rope_type {rope!r}", rope == "default"),
        (f"hidden_act {config.hidden_act!r}", config.hidden_act == "silu"),
        ("a sliding window", not getattr(config, "use_sliding_window", False)),
    ):
        if not ok:
            raise QuantError(f"gguf's {config.model_type} cannot hold {what}; {way}")


def _add_model(sink: Any, config: Any, main: Type) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sink.add_file_type(FILE_TYPES[main])
    sink.add_quantization_version(gguf.GGML_QUANT_VERSION)
    sink.add_vocab_size(config.vocab_size)
    sink.add_context_length(config.max_position_embeddings)
    sink.add_embedding_length(config.hidden_size)
    sink.add_block_count(config.num_hidden_layers)
    sink.add_feed_forward_length(config.intermediate_size)
    sink.add_head_count(config.num_attention_heads)
    sink.add_head_count_kv(config.num_key_value_heads)
    sink.add_key_length(head_dim)
    sink.add_value_length(head_dim)
    sink.add_rope_dimension_count(head_dim)
    sink.add_rope_freq_base(config.rope_parameters["rope_theta"])
    sink.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(sink: Any, folder: Path, rows: int) -> None:
    """The tokenizer of `folder`, with unused tokens up to the embedding's `rows`. Raises QuantError."""
    try:
        library, spec = Tokenizer.from_file(str(folder / "tokenizer.json")), _json(folder / "tokenizer.json")
        settings = _json(folder / "tokenizer_config.json")
    except Exception as problem:  # tokenizers raises bare Exception
        raise QuantError(f"no tokenizer in {folder} ({problem}); pass the folder it was saved to") from problem
    pre = _pre_tokenizer(spec)
    if library.get_vocab_size() > rows:
        raise QuantError(f"tokenizer has {library.get_vocab_size()} tokens, the model {rows}; pass the model's own")

    texts, kinds = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for text, i in spec["model"]["vocab"].items():
        texts[i], kinds[i] = text, TokenType.NORMAL
    roles = {r: _content(settings.get(f"{r}_token")) for r in ("bos", "eos", "pad", "unk")}
    for added in spec["added_tokens"]:
        text, i = added["content"], added["id"]
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise QuantError(
                f"token {text!r} takes spaces or word borders with it, which gguf cannot say; clear its flags"
            )
        control = added["special"] and (text in roles.values() or re.fullmatch(r"<\|.*\|>", text))
        texts[i], kinds[i] = text, TokenType.CONTROL if control else TokenType.USER_DEFINED

    sink.add_tokenizer_model("gpt2")
    sink.add_tokenizer_pre(pre)
    sink.add_token_list(texts)
    sink.add_token_types(kinds)
    sink.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
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


def _pre_tokenizer(spec: dict[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer splits text before merging. Raises QuantError where it has none."""
    model, steps = spec["model"], spec["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    plain = model["type"] == "BPE" and not model.get("byte_fallback") and not model.get("ignore_merges")
    kinds = [step.get("type") for step in steps]
    unprefixed = plain and not any(step.get("add_prefix_space") for step in steps)
    if unprefixed and kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and spec["normalizer"] is None:
        return "gpt-2"
    # Qwen's NFC normalizer has no counterpart in llama.cpp, which reads text as it comes; chat clients send NFC.
    if unprefixed and kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") == QWEN2_SPLIT:
        return "qwen2"
    raise QuantError(
        f"gguf here holds byte-level BPE split as GPT-2 or Qwen2 do, not {model['type']} split by {kinds}; "
        "export compressed_tensors"
    )


def _frame(library: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    bare, whole = library.encode("a", add_special_tokens=False).ids, library.encode("a").ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _tensors(model: nn.Module, config: Any) -> dict[str, tuple[Tensor, Type | None]]:
    """Data and block type of each tensor by its GGUF name. Raises QuantError naming what does not fit."""
    names = {name: stem for stem, name in _names(len(blocks(model))).items()}
    skipped = head(model) if tied(model) else None
    found: dict[str, tuple[Tensor, Type | None]] = {}
    for name, module in model.named_modules():
        parts = {} if module is skipped else _parts(module)
        for suffix, tensor in parts.items():
            if name not in names:
                raise QuantError(f"gguf's {config.model_type} has no place for {name}; export compressed_tensors")
            turned = _rotary_order(
                config.model_type, name, len(tensor), config.num_attention_heads, config.num_key_value_heads
            )
            order = torch.tensor(turned) if turned else slice(None)
            full = f"{names[name]}.{suffix}"
            if suffix == "weight" and isinstance(module, QuantWeight):
                found[full] = _blocks(name, module, order)
            elif tensor.ndim == 1:
                found[full] = tensor.detach().float()[order], None
            else:
                half = tensor.detach().half()[order]
                if not half.isfinite().all():
                    raise QuantError(f"{name}: a weight exceeds fp16's 65504; quantize the layer, or rescale it")
                found[full] = half, None
    return found


def _parts(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors by their name in the file; for a quantized weight its integers stand in."""
    if isinstance(module, QuantWeight):
        bias = module.bias if isinstance(module, QuantLinear) else None
        return {"weight": module.packed} | ({} if bias is None else {"bias": bias})
    return dict(module.named_parameters(recurse=False))


def _blocks(name: str, module: QuantWeight, order: Tensor | slice) -> tuple[Tensor, Type]:
    """uint8 blocks [N, bytes] of a quantized weight, rows in `order`."""
    grid = module.grid
    kind = BLOCK_TYPES.get((grid.bits, grid.symmetric))
    if kind is None or module.columns // module.scale.shape[1] != 32:
        held = f"int{grid.bits}{'' if grid.symmetric else ' with minima'} in groups of {grid.group_size or 'a row'}"
        raise QuantError(
            f"{name}: gguf holds int4, int4 with minima and int8 in groups of 32, not {held}; "
            "quantize with those, or export compressed_tensors"
        )
    codes, scale = module.codes()[order], module.scale[order]
    if kind is Type.Q8_0:
        return pack.pack_q8_0(codes, scale), kind
    if module.zero is None:
        return pack.pack_q4_0(codes, scale), kind
    return pack.pack_q4_1(codes, scale, module.zero[order]), kind


def _dequantize(data: Tensor, kind: Type) -> Tensor:
    """uint8 blocks [N, bytes], or floats, -> float32."""
    if kind is Type.Q8_0:
        codes, scale = pack.unpack_q8_0(data)
        return IntGrid(8).dequantize(codes, Scales(scale))
    if kind is Type.Q4_0:
        codes, scale = pack.unpack_q4_0(data)
        return IntGrid(4).dequantize(codes, Scales(scale))
    if kind is Type.Q4_1:
        codes, scale, zero = pack.unpack_q4_1(data)
        return IntGrid(4, symmetric=False).dequantize(codes, Scales(scale, zero))
    return data.float()


def _main_type(model: nn.Module) -> Type:
    """The type of most of the file's weights."""
    grids = [m.grid for m in model.modules() if isinstance(m, QuantLinear)]
    return BLOCK_TYPES.get((grids[0].bits, grids[0].symmetric), Type.F16) if grids else Type.F16


def _names(count: int) -> dict[str, str]:
    """Hugging Face module name by GGUF stem: blk.0.attn_q -> model.layers.0.self_attn.q_proj."""
    inside = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    return outside | {
        f"blk.{i}.{stem}": f"model.layers.{i}.{name}" for i in range(count) for name, stem in inside.items()
    }


def _rotary_order(architecture: str, name: str, rows: int, heads: int, kv_heads: int) -> list[int] | None:
    """Which Hugging Face row each row of the file is, or None where rows stay."""
    count = {"q_proj": heads, "k_proj": kv_heads}.get(name.rsplit(".", 1)[-1])
    if architecture != "llama" or count is None:
        return None
    order: list[int] = torch.arange(rows).view(count, 2, -1).transpose(1, 2).flatten().tolist()
    return order


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def _content(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    return token["content"] if isinstance(token, dict) else token
