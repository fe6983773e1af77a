"""Small integers as bytes, in the layouts that runtimes read. Every pack has its unpack beside it.

**Bit stream** (compressed-tensors `pack-quantized`, and what `QuantLinear` keeps): a row of codes, shifted to be
unsigned (q + 2^(b-1)), becomes one stream of b-bit fields, least significant bit first, cut into int32 words; 32
values fill exactly b words and a field may cross a word border (b = 3). A row ends on a word border, padded with 0.

**GGUF blocks** of 32 weights (llama.cpp `ggml-common.h`), d and m little-endian fp16:

    Q4_0   d, 16 bytes: low nibbles are weights 0-15, high nibbles weights 16-31, nibble = q + 8     w = d (n - 8)
    Q4_1   d, m, 16 bytes, the same order                                                            w = d n + m
    Q8_0   d, 32 int8                                                                                w = d q

Codes are always the signed integers of `quant.grid`. Packing never rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
WORD = 32


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """int8 [N, K] in -2^(bits-1) .. 2^(bits-1)-1 -> int32 [N, ceil(K * bits / 32)], little-endian bit stream."""
    rows, columns = codes.shape
    words = -(-columns * bits // WORD)
    fields = codes.long() + 2 ** (bits - 1)
    start = torch.arange(columns, device=codes.device) * bits
    word, shift = start // WORD, start % WORD
    low = torch.zeros(rows, words + 1, dtype=torch.int64, device=codes.device)
    shifted = fields << shift  # up to 39 bits: the part above 32 belongs to the next word
    low.index_add_(1, word, shifted & 0xFFFFFFFF)
    low.index_add_(1, word + 1, shifted >> WORD)
    unsigned = low[:, :words]
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32)


def unpack_words(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int32 [N, words] -> int8 [N, columns]; the inverse of `pack_words`."""
    if bits == 8:  # one byte a code: a view, as this is on the path of every forward pass
        return packed.view(torch.uint8)[:, :columns].bitwise_xor(0x80).view(torch.int8)
    if bits in (2, 4):  # whole fields in a byte
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        fields = packed.view(torch.uint8).unsqueeze(-1) >> shifts & (2**bits - 1)
        return fields.flatten(1)[:, :columns].to(torch.int8) - 2 ** (bits - 1)
    words = torch.nn.functional.pad(packed.long() & 0xFFFFFFFF, (0, 1))
    start = torch.arange(columns, device=packed.device) * bits
    word, shift = start // WORD, start % WORD
    pair = words[:, word] | words[:, word + 1] << WORD
    return ((pair >> shift & (2**bits - 1)) - 2 ** (bits - 1)).to(torch.int8)


def pack_q4_0(codes: Tensor, scale: Tensor) -> Tensor:
    """codes int8 [N, K] in -8..7 and scale float16 [N, K/32] -> uint8 [N, K/32 * 18]."""
    return torch.cat([_bytes(scale), _pack_nibbles(codes)], dim=-1).flatten(1)


def unpack_q4_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, G * 18] -> codes int8 [N, G * 32], scale float16 [N, G]."""
    parts = blocks.unflatten(1, (-1, 18))
    return _unpack_nibbles(parts[..., 2:]), _halves(parts[..., :2])


def pack_q4_1(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """codes int8 [N, K] in -8..7, scale and zero float16 [N, K/32] -> uint8 [N, K/32 * 20]."""
    return torch.cat([_bytes(scale), _bytes(zero), _pack_nibbles(codes)], dim=-1).flatten(1)


def unpack_q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 [N, G * 20] -> codes int8 [N, G * 32], scale float16 [N, G], zero float16 [N, G]."""
    parts = blocks.unflatten(1, (-1, 20))
    return _unpack_nibbles(parts[..., 4:]), _halves(parts[..., :2]), _halves(parts[..., 2:4])


def pack_q8_0(codes: Tensor, scale: Tensor) -> Tensor:
    """codes int8 [N, K] and scale float16 [N, K/32] -> uint8 [N, K/32 * 34]."""
    return torch.cat([_bytes(scale), codes.contiguous().view(torch.uint8).unflatten(1, (-1, BLOCK))], dim=-1).flatten(1)


def unpack_q8_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, G * 34] -> codes int8 [N, G * 32], scale float16 [N, G]."""
    parts = blocks.unflatten(1, (-1, 34))
    return parts[..., 2:].contiguous().view(torch.int8).flatten(1), _halves(parts[..., :2])


def _pack_nibbles(codes: Tensor) -> Tensor:
    """int8 [N, G * 32] in -8..7 -> uint8 [N, G, 16]."""
    low, high = (codes + 8).to(torch.uint8).unflatten(1, (-1, 2, BLOCK // 2)).unbind(2)
    return low | high << 4


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 [N, G, 16] -> int8 [N, G * 32]."""
    return torch.cat([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8


def _bytes(half: Tensor) -> Tensor:
    """float16 [N, G] -> uint8 [N, G, 2]."""
    return half.contiguous().unsqueeze(-1).view(torch.uint8)


def _halves(pairs: Tensor) -> Tensor:
    """uint8 [N, G, 2] -> float16 [N, G]."""
    return pairs.contiguous().view(torch.float16).squeeze(-1)
