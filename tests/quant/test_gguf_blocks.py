"""Every block layout, against the dequantizers of gguf-py, and two blocks made by hand."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from quant.gguf_blocks import LAYOUTS, pack_q4_0, pack_q4_k, unpack_q4_k
from quant.grid import Scales

each_type = pytest.mark.parametrize("name", LAYOUTS)


def some_blocks(name: str, rows: int, groups: int, seed: int) -> Tensor:
    """Random bytes uint8 [rows, groups of 256 weights], scales made finite."""
    size, stride = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    drawn = torch.randint(0, 256, (rows, groups * 256 // size * stride), generator=torch.Generator().manual_seed(seed))
    codes, scales = LAYOUTS[name].unpack(drawn.to(torch.uint8))

    def finite(part: Tensor) -> Tensor:
        if part.is_floating_point():
            return part.nan_to_num(1, 2, 3)
        return part.clamp(max=252) if name == "MXFP4" else part  # exponents that float32 can hold

    return LAYOUTS[name].pack(codes, scales.map(finite))


@each_type
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 3), groups=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_they_are_the_numbers_gguf_reads(name: str, rows: int, groups: int, seed: int) -> None:
    blocks = some_blocks(name, rows, groups, seed)
    theirs = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name]))
    assert torch.equal(theirs, LAYOUTS[name].grid.dequantize(*LAYOUTS[name].unpack(blocks)))


@each_type
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_bytes_come_back(name: str, data: st.DataObject) -> None:
    stride = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    blocks = torch.from_numpy(data.draw(arrays(np.uint8, (2, 2 * stride))))
    assert torch.equal(LAYOUTS[name].pack(*LAYOUTS[name].unpack(blocks)), blocks)


@each_type
def test_what_a_grid_finds_comes_back(name: str) -> None:
    grid, pack, unpack = LAYOUTS[name]
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    scales = grid.find(weight)
    codes = grid.quantize(weight, scales)
    back, held = unpack(pack(codes, scales))
    assert torch.equal(back, codes)
    for again, once in zip(held, scales, strict=True):
        assert (again is None and once is None) or torch.equal(again, once)


def test_a_q4_0_block_made_by_hand() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, 0], codes[0, 16], codes[0, 1] = -8, 7, 1  # the first byte holds weights 0 and 16
    packed = pack_q4_0(codes, Scales(torch.tensor([[1.5]]).half()))
    expected = np.frombuffer(np.float16(1.5).tobytes(), np.uint8).tolist() + [0xF0, 0x89] + [0x88] * 14
    assert packed.tolist() == [expected]


def test_the_scales_of_a_q4_k_block_made_by_hand() -> None:
    codes = torch.full((1, 256), -8, dtype=torch.int8)
    scale = torch.tensor([[0b000001, 2, 3, 4, 0b110101, 0, 0, 0]], dtype=torch.uint8)
    zero = torch.tensor([[0b000111, 0, 0, 0, 0b101001, 0, 0, 63]], dtype=torch.uint8)
    half = torch.ones(1, 1).half()
    packed = pack_q4_k(codes, Scales(scale, zero, half, half))
    # Scales 0-3 with the high pairs of 4-7, minima alike, then the low nibbles of scales 4-7 and of minima 4-7.
    expected = [0b11_000001, 2, 3, 4, 0b10_000111, 0, 0, 0b11_000000, 0b1001_0101, 0, 0, 0b1111_0000]
    assert packed[0, 4:16].tolist() == expected
    assert torch.equal(unpack_q4_k(packed)[1].scale, scale)
