"""The bit stream, against compressed-tensors, whose it is, and one made by hand."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st

from quant.pack import pack_words, unpack_words

BITS = (2, 3, 4, 5, 6, 8)


def some_codes(bits: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    drawn = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=torch.Generator().manual_seed(seed)
    )
    return drawn.to(torch.int8)


@given(bits=st.sampled_from(BITS), rows=st.integers(1, 3), columns=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_words_are_those_of_compressed_tensors_and_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = some_codes(bits, rows, columns, seed)
    packed = pack_words(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack_words(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_one_little_endian_bit_stream(bits: int) -> None:
    codes = some_codes(bits, 1, 37, seed=5)
    stream = sum((int(q) + 2 ** (bits - 1)) << (i * bits) for i, q in enumerate(codes[0]))
    words = -(-37 * bits // 32)
    assert pack_words(codes, bits).numpy().astype("<i4").tobytes() == stream.to_bytes(4 * words, "little")
