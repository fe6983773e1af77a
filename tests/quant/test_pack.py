"""The layouts, against the two packages whose files they are, and a block made by hand."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from quant.grid import IntGrid, Scales
from quant.pack import (
    pack_q4_0,
    pack_q4_1,
    pack_q8_0,
    pack_words,
    unpack_q4_0,
    unpack_q4_1,
    unpack_q8_0,
    unpack_words,
)  # fmt: skip


def some_codes(bits: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    drawn = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=torch.Generator().manual_seed(seed)
    )
    return drawn.to(torch.int8)


def some_halves(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).half()


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_words_are_those_of_compressed_tensors_and_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = some_codes(bits, rows, columns, seed)
    packed = pack_words(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack_words(packed, bits, columns), codes)


@given(rows=st.integers(1, 3), groups=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_blocks_are_those_of_gguf_and_come_back(rows: int, groups: int, seed: int) -> None:
    scale, zero = some_halves(rows, groups, seed), some_halves(rows, groups, seed + 1)
    small, large = some_codes(4, rows, groups * 32, seed), some_codes(8, rows, groups * 32, seed).clamp(min=-127)

    def theirs(packed: torch.Tensor, kind: Type) -> torch.Tensor:
        return torch.from_numpy(dequantize(packed.numpy(), kind))

    q4_0, q4_1, q8_0 = pack_q4_0(small, scale), pack_q4_1(small, scale, zero), pack_q8_0(large, scale)
    assert torch.equal(theirs(q4_0, Type.Q4_0), IntGrid(4).dequantize(small, Scales(scale)))
    assert torch.equal(theirs(q4_1, Type.Q4_1), IntGrid(4, symmetric=False).dequantize(small, Scales(scale, zero)))
    assert torch.equal(theirs(q8_0, Type.Q8_0), IntGrid(8).dequantize(large, Scales(scale)))
    for back, put in (
        (unpack_q4_0(q4_0), (small, scale)),
        (unpack_q4_1(q4_1), (small, scale, zero)),
        (unpack_q8_0(q8_0), (large, scale)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(back, put, strict=True))


def test_a_q4_0_block_made_by_hand() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, 0], codes[0, 16], codes[0, 1] = -8, 7, 1  # the first byte holds weights 0 and 16
    packed = pack_q4_0(codes, torch.tensor([[1.5]]).half())
    expected = np.frombuffer(np.float16(1.5).tobytes(), np.uint8).tolist() + [0xF0, 0x89] + [0x88] * 14
    assert packed.tolist() == [expected]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_is_one_little_endian_bit_stream(bits: int) -> None:
    codes = some_codes(bits, 1, 37, seed=5)
    stream = sum((int(q) + 2 ** (bits - 1)) << (i * bits) for i, q in enumerate(codes[0]))
    words = -(-37 * bits // 32)
    assert pack_words(codes, bits).numpy().astype("<i4").tobytes() == stream.to_bytes(4 * words, "little")
