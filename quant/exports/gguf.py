"""GGUF: one file with model and tokenizer, run by llama.cpp. Our integers go in as they are; none is chosen anew.

Its checksum lies beside it, FILE.sha256.

| on the grid                        | in the file  |   | on the grid                    | in the file |
|------------------------------------|--------------|---|--------------------------------|-------------|
| int4, int5, groups of 32           | Q4_0, Q5_0   |   | e2m1, MX scales                | MXFP4       |
| the same with minima               | Q4_1, Q5_1   |   | none: linear, embedding, head  | F16         |
| int8, groups of 32                 | Q8_0         |   | none: norms, biases            | F32         |
| K-quants                           | Q2_K to Q6_K |   |                                |             |

Each tensor has its own type, so layers on different grids make one file, which is named after the type of most of its
weights. Other group sizes and bits have no block (`quant.gguf_blocks`) and are refused, as is int8 with minima. What is
on no grid goes to F16: a model in bf16 or float32 loses up to 2^-11 of a weight there, and is refused where a weight is
beyond fp16's range.

| model_type | architecture | what is different in the file                                                        |
|------------|--------------|--------------------------------------------------------------------------------------|
| llama      | llama        | rows of q and k reordered, as it rotates neighbouring pairs (0, 1), (2, 3), where    |
| mistral    | llama        | Hugging Face rotates halves (0, d/2), (1, d/2 + 1); scales belong to rows, so this   |
|            |              | moves whole rows of integers; Llama 3's stretched frequencies are a tensor of theirs |
| qwen2      | qwen2        | nothing                                                                              |
| qwen3      | qwen3        | nothing; has a norm of each head's q and k                                           |
| gemma      | gemma        | norms hold 1 + w; the runtime scales the embedding                                   |
| phi3       | phi3         | nothing; q, k and v are one matrix, gate and up another                              |

An attention window shorter than the context cannot be said for these, and neither can other activations or ways to
stretch the rotary frequencies. llama.cpp rounds the inputs of quantized layers to int8 in groups of 32 (256 for
K-quants) by itself; a layer that is to round them otherwise is refused, as are the scales of a rounded KV cache.

Sources: ggml `docs/gguf.md`; llama.cpp `convert_hf_to_gguf.py` (`LlamaModel.permute`, `generate_extra_tensors`).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType
from torch import Tensor, nn

from quant.anatomy import all_linears, blocks, head, tied
from quant.errors import QuantError
from quant.exports import files
from quant.exports.gguf_tokenizer import add_tokenizer
from quant.gguf_blocks import LAYOUTS
from quant.grid import FloatGrid, Grid
from quant.linear import QuantLinear, QuantWeight

WAY_OUT = "export compressed_tensors"
TYPES = {layout.grid: Type[name] for name, layout in LAYOUTS.items()}
FILE_TYPES = {
    Type.MXFP4: LlamaFileType.MOSTLY_MXFP4_MOE, Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_S,
    Type.Q4_K: LlamaFileType.MOSTLY_Q4_K_S, Type.Q5_K: LlamaFileType.MOSTLY_Q5_K_S,
}  # fmt: skip
INSIDE = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
FREQUENCIES = "rope_freqs"


@dataclass(frozen=True)
class Architecture:
    """What GGUF says of a model type.

    Attributes:
        name: in the file.
        inside: GGUF name of each module of a block that has parameters.
        interleaved: whether the runtime rotates neighbouring pairs.
        activation: the only one it computes.
        norm: what it adds to a norm's weights, all of which the file holds.
        own_head: whether the head may differ from the embedding.
        biased: GGUF names of what may have a bias.
    """

    name: str
    inside: dict[str, str] = field(default_factory=lambda: INSIDE)
    interleaved: bool = False
    activation: str = "silu"
    norm: float = 0.0
    own_head: bool = True
    biased: frozenset[str] = frozenset()


QWEN3 = INSIDE | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
PHI3 = {
    "input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
LLAMA = Architecture("llama", interleaved=True, biased=frozenset(INSIDE.values()))
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2", biased=frozenset({"attn_q", "attn_k", "attn_v"})),
    "qwen3": Architecture("qwen3", QWEN3),
    "gemma": Architecture("gemma", activation="gelu_pytorch_tanh", norm=1.0, own_head=False),
    "phi3": Architecture("phi3", PHI3),
}
"""By `config.model_type`."""


def write(model: nn.Module, path: Path, tokenizer_dir: Path) -> Path:
    """Write one GGUF file; see `quant.export`."""
    config: Any = model.config
    architecture = _checked(model, config)
    tensors = _tensors(model, config, architecture)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = gguf.GGUFWriter(partial, architecture.name)
    try:
        _add_model(sink, config, _main_type(model))
        add_tokenizer(sink, tokenizer_dir, config.vocab_size)
        for name, (data, kind) in tensors.items():
            sink.add_tensor(name, data.cpu().contiguous().numpy(), raw_dtype=kind)
        sink.write_header_to_file()
        sink.write_kv_data_to_file()
        sink.write_tensors_to_file()
        sink.close()
        files.checksum_of(path).unlink(missing_ok=True)
        os.replace(partial, path)
        files.seal(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Tensor]:
    """The weights a runtime computes with, float32, under their Hugging Face names and in that row order.

    Raises QuantError where the file is damaged, is no GGUF, or holds what `write` never writes.
    """
    files.check(path)
    try:
        source = gguf.GGUFReader(path)
        name = source.get_field("general.architecture").contents()
        count, heads, kv_heads = (
            int(source.get_field(f"{name}.{key}").contents())
            for key in ("block_count", "attention.head_count", "attention.head_count_kv")
        )
    except OSError:
        raise
    except Exception as problem:  # whatever gguf's reader runs into
        why = " ".join(str(problem).split())
        raise QuantError(f"{path} is not a whole GGUF file ({why}); copy or export it again") from problem
    found = [a for a in ARCHITECTURES.values() if a.name == name]
    if not found:
        raise QuantError(f"{path} holds a model of type {name!r}, which is not read here; read what `export` wrote")
    names = {stem: full for full, stem in _names(found[0], count).items()}
    state = {}
    for tensor in source.tensors:
        stem, suffix = tensor.name.rsplit(".", 1)
        if stem == FREQUENCIES:
            continue
        if stem not in names or tensor.tensor_type not in (*TYPES.values(), Type.F16, Type.F32):
            held = f"{tensor.name} as {tensor.tensor_type.name}"
            raise QuantError(f"{path} holds {held}, which is not read here; read what `export` wrote")
        weight = _dequantize(torch.from_numpy(tensor.data.copy()), tensor.tensor_type)
        if found[0].norm and stem.endswith("_norm"):
            weight -= found[0].norm
        if turned := _rotary_order(found[0], names[stem], len(weight), heads, kv_heads):
            weight = weight[torch.tensor(turned).argsort()]
        state[f"{names[stem]}.{suffix}"] = weight
    return state


def _checked(model: nn.Module, config: Any) -> Architecture:
    """The model's architecture. Raises QuantError for what the metadata cannot say."""
    if config.model_type not in ARCHITECTURES:
        held = f"{', '.join(list(ARCHITECTURES)[:-1])} and {list(ARCHITECTURES)[-1]}"
        raise QuantError(f"gguf holds {held} here, not {config.model_type!r}; {WAY_OUT}")
    architecture = ARCHITECTURES[config.model_type]
    rope = config.rope_parameters["rope_type"]
    windowed = getattr(config, "use_sliding_window", True)  # qwen has a switch beside the width
    window = (getattr(config, "sliding_window", None) if windowed else None) or math.inf
    for what, ok in (
        (f"rope_type {rope!r}", rope == "default" or (rope == "llama3" and architecture.interleaved)),
        (f"hidden_act {config.hidden_act!r}", config.hidden_act == architecture.activation),
        (f"a sliding window of {window}", window >= config.max_position_embeddings),
        ("a head of its own", architecture.own_head or tied(model)),
    ):
        if not ok:
            raise QuantError(f"gguf's {config.model_type} cannot hold {what}; {WAY_OUT}")
    return architecture


def _add_model(sink: Any, config: Any, main: Type) -> None:
    head_dim = _head_dim(config)
    sink.add_file_type(FILE_TYPES.get(main) or LlamaFileType[f"MOSTLY_{main.name}"])
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
    sink.add_rope_dimension_count(int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)))
    sink.add_rope_freq_base(config.rope_parameters["rope_theta"])
    sink.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: nn.Module, config: Any, architecture: Architecture) -> dict[str, tuple[Tensor, Type | None]]:
    """Data and block type of each tensor by its GGUF name. Raises QuantError naming what does not fit."""
    names = _names(architecture, len(blocks(model)))
    skipped = head(model) if tied(model) else None
    found: dict[str, tuple[Tensor, Type | None]] = {}
    if config.rope_parameters["rope_type"] == "llama3":
        found[f"{FREQUENCIES}.weight"] = _llama3_factors(config), None
    for name, module in model.named_modules():
        parts = {} if module is skipped else _parts(module)
        for suffix, tensor in parts.items():
            stem = names.get(name, "")
            if not stem or (suffix == "bias" and stem.rsplit(".", 1)[-1] not in architecture.biased):
                raise QuantError(f"gguf's {config.model_type} has no place for {name}.{suffix}; {WAY_OUT}")
            turned = _rotary_order(
                architecture, name, len(tensor), config.num_attention_heads, config.num_key_value_heads
            )
            order = torch.tensor(turned) if turned else slice(None)
            full = f"{stem}.{suffix}"
            if suffix == "weight" and isinstance(module, QuantWeight):
                found[full] = _blocks(name, module, order)
            elif tensor.ndim == 1:
                shift = architecture.norm if full.endswith("_norm.weight") else 0.0
                found[full] = tensor.detach().float()[order] + shift, None
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
    kept = module._buffers.keys() - module._non_persistent_buffers_set
    return dict(module.named_parameters(recurse=False)) | {name: module.get_buffer(name) for name in kept}


def _blocks(name: str, module: QuantWeight, order: Tensor | slice) -> tuple[Tensor, Type]:
    """uint8 blocks [N, bytes] of a quantized weight, rows in `order`."""
    if isinstance(module, QuantLinear) and (inputs := module.activations) is not None:
        held = f"{inputs.format} per {inputs.per}"
        raise QuantError(
            f"{name}: gguf cannot say that inputs are rounded to {held}; quantize weights only, or {WAY_OUT}"
        )
    kind = TYPES.get(module.grid)
    if kind is None:
        raise QuantError(
            f"{name}: gguf holds int4, int5 and int8 in groups of 32, int4 and int5 with minima, MXFP4 and K-quants, "
            f"not {_described(module.grid)}; quantize with those, or {WAY_OUT}"
        )
    size = gguf.GGML_QUANT_SIZES[kind][0]
    if module.columns % size:
        raise QuantError(
            f"{name}: gguf's {kind.name} has blocks of {size}, which do not divide {module.columns} inputs; "
            f"leave the layer unquantized, or {WAY_OUT}"
        )
    return LAYOUTS[kind.name].pack(module.codes()[order], module.scales.map(lambda part: part[order])), kind


def _described(grid: Grid) -> str:
    """A grid in a few words."""
    levels = grid.format if isinstance(grid, FloatGrid) else f"int{grid.bits}"
    scaling = f" with {grid.scaling} scales" if isinstance(grid, FloatGrid) else ""
    groups = {None: "a row", "tensor": "a tensor", "block": "128 x 128"}.get(grid.group_size, grid.group_size)  # type: ignore[arg-type]
    return f"{levels}{scaling}{'' if grid.symmetric else ' with minima'} in groups of {groups}"


def _dequantize(data: Tensor, kind: Type) -> Tensor:
    """uint8 blocks [N, bytes], or floats, -> float32."""
    if kind not in TYPES.values():
        return data.float()
    layout = LAYOUTS[kind.name]
    return layout.grid.dequantize(*layout.unpack(data))


def _main_type(model: nn.Module) -> Type:
    """The type of most of the weights of the model's linears."""
    weights: Counter[Type] = Counter({Type.F16: sum(linear.weight.numel() for _, linear in all_linears(model))})
    for module in model.modules():
        if isinstance(module, QuantLinear) and module.grid in TYPES:
            weights[TYPES[module.grid]] += module.rows * module.columns
    return weights.most_common(1)[0][0]


def _names(architecture: Architecture, count: int) -> dict[str, str]:
    """GGUF stem by Hugging Face module name: model.layers.0.self_attn.q_proj -> blk.0.attn_q."""
    inside = architecture.inside.items()
    return OUTSIDE | {f"model.layers.{i}.{name}": f"blk.{i}.{stem}" for i in range(count) for name, stem in inside}


def _rotary_order(architecture: Architecture, name: str, rows: int, heads: int, kv_heads: int) -> list[int] | None:
    """Which Hugging Face row each row of the file is, or None where rows stay."""
    count = {"q_proj": heads, "k_proj": kv_heads}.get(name.rsplit(".", 1)[-1])
    if not architecture.interleaved or count is None:
        return None
    order: list[int] = torch.arange(rows).view(count, 2, -1).transpose(1, 2).flatten().tolist()
    return order


def _llama3_factors(config: Any) -> Tensor:
    """By how much Llama 3 slows each rotary frequency down: float32 [head_dim / 2].

    Not at all where a turn takes few tokens, by `factor` where it takes many, and in between by the weighted mean of
    the two frequencies.
    """
    rope = config.rope_parameters
    pairs = torch.arange(0, _head_dim(config), 2, dtype=torch.float32) / _head_dim(config)
    turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** -pairs / (2 * math.pi)
    kept = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    kept = kept.clamp(0, 1)
    return 1 / (kept + (1 - kept) / rope["factor"])


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
