"""GGUF's blocks: the integers and scales of `quant.grid` as the bytes llama.cpp computes with, and back. No rounding.

Codes are the signed ones of the grids; a field is a code made unsigned, f = q + 2^(bits-1). d and m (`dmin` of
K-quants) are little-endian fp16. Numbers are bytes.

    32 weights   Q4_0   d 2, fields 16                              w = d (f - 8)
                 Q4_1   d 2, m 2, fields 16                         w = d f + m
                 Q5_0   d 2, fifth bits 4, low nibbles 16           w = d (f - 16)
                 Q5_1   d 2, m 2, fifth bits 4, low nibbles 16      w = d f + m
                 Q8_0   d 2, codes 32                               w = d q
                 MXFP4  e 1, fields 16                              w = 2^(e - 127) e2m1(f)

    256 weights  Q2_K   scales and minima 16, fields 64, d 2, m 2   w = d s f - m z      s, z of 16, 4 bits each
                 Q3_K   third bits 32, low pairs 64, scales 12, d 2 w = d s (f - 4)      s of 16, 6 bits, plus 32
                 Q4_K   d 2, m 2, scales and minima 12, fields 128  w = d s f - m z      s, z of 32, 6 bits each
                 Q5_K   the same, fifth bits 32, low nibbles 128    w = d s f - m z      s, z of 32, 6 bits each
                 Q6_K   low nibbles 128, high pairs 64, s 16, d 2   w = d s (f - 32)     s of 16, int8

Weights are not neighbours in a byte. Of each run of `width` x (8 / bits) fields, byte i holds the fields i, i + width,
i + 2 width and so on, from its low bits up (`_fold`): 16 apart in the nibbles of 32 weights, 32 apart in those of 256
(Q6_K: 64), 32 apart in every K-quant's single bits and pairs; the fifth bits of Q5_0 and Q5_1 alone are in order.

Sources: llama.cpp `ggml-common.h` for the structures, `ggml-quants.c` (`dequantize_row_*`) for their meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.grid import FloatGrid, Grid, IntGrid, KGrid, Scales

Unpacked = tuple[Tensor, Scales]


class Layout(NamedTuple):
    """One block type: what it holds losslessly, and how.

    `pack` takes codes int8 [N, K] and their scales to uint8 [N, bytes]; `unpack` is its inverse.
    """

    grid: Grid
    pack: Callable[[Tensor, Scales], Tensor]
    unpack: Callable[[Tensor], Unpacked]


def pack_q4_0(codes: Tensor, scales: Scales) -> Tensor:
    return _joined(_bytes(scales.scale), _fold(_fields(codes, 4, 32), 4, 16))


def unpack_q4_0(blocks: Tensor) -> Unpacked:
    d, fields = _parted(blocks, 2, 16)
    return _codes(_unfold(fields, 4, 16), 4), Scales(_halves(d))


def pack_q4_1(codes: Tensor, scales: Scales) -> Tensor:
    assert scales.zero is not None
    return _joined(_bytes(scales.scale), _bytes(scales.zero), _fold(_fields(codes, 4, 32), 4, 16))


def unpack_q4_1(blocks: Tensor) -> Unpacked:
    d, m, fields = _parted(blocks, 2, 2, 16)
    return _codes(_unfold(fields, 4, 16), 4), Scales(_halves(d), _halves(m))


def pack_q5_0(codes: Tensor, scales: Scales) -> Tensor:
    fields = _fields(codes, 5, 32)
    return _joined(_bytes(scales.scale), _fold(fields >> 4, 1, 1), _fold(fields & 15, 4, 16))


def unpack_q5_0(blocks: Tensor) -> Unpacked:
    d, fifth, low = _parted(blocks, 2, 4, 16)
    return _codes(_unfold(low, 4, 16) | _unfold(fifth, 1, 1) << 4, 5), Scales(_halves(d))


def pack_q5_1(codes: Tensor, scales: Scales) -> Tensor:
    assert scales.zero is not None
    fields = _fields(codes, 5, 32)
    return _joined(
        _bytes(scales.scale), _bytes(scales.zero), _fold(fields >> 4, 1, 1), _fold(fields & 15, 4, 16)
    )  # fmt: skip


def unpack_q5_1(blocks: Tensor) -> Unpacked:
    d, m, fifth, low = _parted(blocks, 2, 2, 4, 16)
    return _codes(_unfold(low, 4, 16) | _unfold(fifth, 1, 1) << 4, 5), Scales(_halves(d), _halves(m))


def pack_q8_0(codes: Tensor, scales: Scales) -> Tensor:
    return _joined(_bytes(scales.scale), codes.contiguous().view(torch.uint8).unflatten(1, (-1, 32)))


def unpack_q8_0(blocks: Tensor) -> Unpacked:
    d, codes = _parted(blocks, 2, 32)
    return codes.contiguous().view(torch.int8).flatten(1), Scales(_halves(d))


def pack_mxfp4(codes: Tensor, scales: Scales) -> Tensor:
    return _joined(scales.scale.unsqueeze(-1), _fold(_fields(codes, 4, 32), 4, 16))


def unpack_mxfp4(blocks: Tensor) -> Unpacked:
    e, fields = _parted(blocks, 1, 16)
    return _codes(_unfold(fields, 4, 16), 4), Scales(e.squeeze(-1))


def pack_q2_k(codes: Tensor, scales: Scales) -> Tensor:
    assert scales.zero is not None and scales.outer is not None and scales.outer_zero is not None
    small = scales.scale.unflatten(1, (-1, 16)) | scales.zero.unflatten(1, (-1, 16)) << 4
    return _joined(small, _fold(_fields(codes, 2, 256), 2, 32), _bytes(scales.outer), _bytes(scales.outer_zero))


def unpack_q2_k(blocks: Tensor) -> Unpacked:
    small, fields, d, m = _parted(blocks, 16, 64, 2, 2)
    scales = Scales((small & 15).flatten(1), (small >> 4).flatten(1), _halves(d), _halves(m))
    return _codes(_unfold(fields, 2, 32), 2), scales


def pack_q3_k(codes: Tensor, scales: Scales) -> Tensor:
    assert scales.outer is not None
    fields = _fields(codes, 3, 256)
    small = (scales.scale.unflatten(1, (-1, 16)) + 32).to(torch.uint8)
    six = torch.cat([_fold(small & 15, 4, 8), _fold(small >> 4, 2, 4)], dim=-1)
    return _joined(_fold(fields >> 2, 1, 32), _fold(fields & 3, 2, 32), six, _bytes(scales.outer))


def unpack_q3_k(blocks: Tensor) -> Unpacked:
    third, low, six, d = _parted(blocks, 32, 64, 12, 2)
    small = _unfold(six[..., :8], 4, 8) | _unfold(six[..., 8:], 2, 4) << 4
    scales = Scales((small.to(torch.int8) - 32).flatten(1), None, _halves(d))
    return _codes(_unfold(low, 2, 32) | _unfold(third, 1, 32) << 2, 3), scales


def pack_q4_k(codes: Tensor, scales: Scales) -> Tensor:
    return _joined(*_pack_scales(scales), _fold(_fields(codes, 4, 256), 4, 32))


def unpack_q4_k(blocks: Tensor) -> Unpacked:
    d, m, small, fields = _parted(blocks, 2, 2, 12, 128)
    return _codes(_unfold(fields, 4, 32), 4), _unpack_scales(d, m, small)


def pack_q5_k(codes: Tensor, scales: Scales) -> Tensor:
    fields = _fields(codes, 5, 256)
    return _joined(*_pack_scales(scales), _fold(fields >> 4, 1, 32), _fold(fields & 15, 4, 32))


def unpack_q5_k(blocks: Tensor) -> Unpacked:
    d, m, small, fifth, low = _parted(blocks, 2, 2, 12, 32, 128)
    return _codes(_unfold(low, 4, 32) | _unfold(fifth, 1, 32) << 4, 5), _unpack_scales(d, m, small)


def pack_q6_k(codes: Tensor, scales: Scales) -> Tensor:
    assert scales.outer is not None
    fields = _fields(codes, 6, 256)
    small = scales.scale.contiguous().view(torch.uint8).unflatten(1, (-1, 16))
    return _joined(_fold(fields & 15, 4, 64), _fold(fields >> 4, 2, 32), small, _bytes(scales.outer))


def unpack_q6_k(blocks: Tensor) -> Unpacked:
    low, high, small, d = _parted(blocks, 128, 64, 16, 2)
    scales = Scales(small.contiguous().view(torch.int8).flatten(1), None, _halves(d))
    return _codes(_unfold(low, 4, 64) | _unfold(high, 2, 32) << 4, 6), scales


LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(IntGrid(4), pack_q4_0, unpack_q4_0),
    "Q4_1": Layout(IntGrid(4, symmetric=False), pack_q4_1, unpack_q4_1),
    "Q5_0": Layout(IntGrid(5), pack_q5_0, unpack_q5_0),
    "Q5_1": Layout(IntGrid(5, symmetric=False), pack_q5_1, unpack_q5_1),
    "Q8_0": Layout(IntGrid(8), pack_q8_0, unpack_q8_0),
    "MXFP4": Layout(FloatGrid("e2m1", 32, "mx"), pack_mxfp4, unpack_mxfp4),
    "Q2_K": Layout(KGrid(2), pack_q2_k, unpack_q2_k),
    "Q3_K": Layout(KGrid(3), pack_q3_k, unpack_q3_k),
    "Q4_K": Layout(KGrid(4), pack_q4_k, unpack_q4_k),
    "Q5_K": Layout(KGrid(5), pack_q5_k, unpack_q5_k),
    "Q6_K": Layout(KGrid(6), pack_q6_k, unpack_q6_k),
}
"""Every lossless layout by its name in GGUF."""


def _pack_scales(scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
    """d and m uint8 [N, S, 2] and the eight 6-bit scales s and minima z of each super-block, uint8 [N, S, 12].

    The first four of each fill the low six bits of bytes 0-3 (s) and 4-7 (z); of the last four, the low nibbles share
    bytes 8-11 and the high pairs sit on top of the first four.
    """
    assert scales.zero is not None and scales.outer is not None and scales.outer_zero is not None
    s, z = (part.unflatten(1, (-1, 8)) for part in (scales.scale, scales.zero))
    first = [part[..., :4] | part[..., 4:] >> 4 << 6 for part in (s, z)]
    last = s[..., 4:] & 15 | (z[..., 4:] & 15) << 4
    return _bytes(scales.outer), _bytes(scales.outer_zero), torch.cat([*first, last], dim=-1)


def _unpack_scales(d: Tensor, m: Tensor, small: Tensor) -> Scales:
    first, second, last = small.split(4, dim=-1)
    s = torch.cat([first & 63, last & 15 | first >> 6 << 4], dim=-1)
    z = torch.cat([second & 63, last >> 4 | second >> 6 << 4], dim=-1)
    return Scales(s.flatten(1), z.flatten(1), _halves(d), _halves(m))


def _fields(codes: Tensor, bits: int, block: int) -> Tensor:
    """int8 [N, K] -> uint8 [N, K / block, block], from 0."""
    return (codes + 2 ** (bits - 1)).to(torch.uint8).unflatten(1, (-1, block))


def _codes(fields: Tensor, bits: int) -> Tensor:
    """uint8 [N, G, block] -> int8 [N, K]."""
    return fields.to(torch.int8).flatten(1) - 2 ** (bits - 1)


def _fold(fields: Tensor, bits: int, width: int) -> Tensor:
    """Fields of 1, 2 or 4 bits -> bytes: uint8 [N, G, n] -> [N, G, n * bits / 8], `width` apart in a byte."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=fields.device)[:, None]
    apart = fields.unflatten(-1, (-1, 8 // bits, width)) << shifts
    return apart.sum(-2, dtype=torch.uint8).flatten(-2)


def _unfold(packed: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of `_fold`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    return (packed.unflatten(-1, (-1, 1, width)) >> shifts & 2**bits - 1).flatten(-3)


def _joined(*parts: Tensor) -> Tensor:
    """uint8 [N, G, n] of several n -> [N, bytes], block after block."""
    return torch.cat(parts, dim=-1).flatten(1)


def _parted(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """The inverse of `_joined`."""
    return blocks.unflatten(1, (-1, sum(sizes))).split(sizes, dim=-1)


def _bytes(half: Tensor) -> Tensor:
    """float16 [N, G] -> uint8 [N, G, 2]."""
    return half.contiguous().unsqueeze(-1).view(torch.uint8)


def _halves(pairs: Tensor) -> Tensor:
    """uint8 [N, G, 2] -> float16 [N, G]."""
    return pairs.contiguous().view(torch.float16).squeeze(-1)
