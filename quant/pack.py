"""Small integers as one bit stream: compressed-tensors' `pack-quantized`, and what `QuantLinear` keeps.

A row of codes, shifted to be
unsigned (q + 2^(b-1)), becomes one stream of b-bit fields, least significant bit first, cut into int32 words; 32
values fill exactly b words and a field may cross a word border (b = 3). A row ends on a word border, padded with 0.

Codes are always the signed integers of `quant.grid`. Packing never rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
AT_ONCE = 2**17


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """int8 [N, K] in -2^(bits-1) .. 2^(bits-1)-1 -> int32 [N, ceil(K * bits / 32)], little-endian bit stream."""
    columns = codes.shape[1]
    words = -(-columns * bits // WORD)
    start = torch.arange(columns, device=codes.device) * bits
    word, shift = start // WORD, start % WORD
    packed = torch.empty(len(codes), words, dtype=torch.int32, device=codes.device)
    at_once = max(1, AT_ONCE // columns)  # as a code takes 32 bytes on the way
    for some, into in zip(codes.split(at_once), packed.split(at_once), strict=True):
        low = torch.zeros(len(some), words + 1, dtype=torch.int64, device=codes.device)
        shifted = some.long() + 2 ** (bits - 1) << shift  # up to 39 bits: the part above 32 belongs to the next word
        low.index_add_(1, word, shifted & 0xFFFFFFFF)
        low.index_add_(1, word + 1, shifted >> WORD)
        unsigned = low[:, :words]
        into.copy_(torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned))
    return packed


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
