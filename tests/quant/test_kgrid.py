"""K-quants: the levels against brute force, the fit of the scales against min-max and llama.cpp's own quantizer."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
import xllamacpp
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from quant import QuantError
from quant.grid import KGrid, Scales, Steps

STUDENT = Path(__file__).parents[2] / "infra/seedling/models/student/model.safetensors"
GRIDS = [KGrid(bits) for bits in (2, 3, 4, 5, 6)]
# Of llama.cpp's weighted error on Gaussian weights: what each part of the fit is needed for.
REACHED = {2: 0.9345, 3: 0.975, 4: 0.964, 5: 0.898, 6: 0.970}
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
# Down to 1e-2 of the largest, so that no scale is a subnormal fp16 number, whose coarse steps would be what is tested.
weights = st.tuples(st.integers(0, 2**32 - 1), st.floats(0.5, 4.0), st.floats(1e-2, 10)).map(
    lambda drawn: drawn[2] * heavy_tailed(1, 512, *drawn[:2])
)


def heavy_tailed(rows: int, columns: int, seed: int, power: float = 1.5) -> Tensor:
    normal = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return normal.sign() * normal.abs() ** power


def error(grid: KGrid, weight: Tensor, scales: Scales, importance: Tensor | None = None) -> float:
    left = grid.dequantize(grid.quantize(weight, scales), scales) - weight
    return float((left.square() * (1 if importance is None else importance)).sum())


def llama_cpp(grid: KGrid, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """The weight after llama.cpp's quantizer, with an importance matrix or without."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    kind = GGMLQuantizationType[f"Q{grid.bits}_K"]
    source, (size, stride) = np.ascontiguousarray(weight.numpy()), GGML_QUANT_SIZES[kind]
    target = np.zeros((len(source), source.shape[1] // size * stride), np.uint8)
    counted = None if importance is None else np.ascontiguousarray(importance.numpy())
    quantizer = getattr(library, f"quantize_q{grid.bits}_K")
    quantizer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    pointer = None if counted is None else counted.ctypes.data
    quantizer(source.ctypes.data, target.ctypes.data, *source.shape, pointer)
    return torch.from_numpy(dequantize(target, kind))


@each_grid
@settings(max_examples=8, deadline=None)
@given(weight=weights)
def test_a_weight_takes_the_nearest_of_all_levels(grid: KGrid, weight: Tensor) -> None:
    scales = grid.find(weight)
    taken = grid.dequantize(grid.quantize(weight, scales), scales)
    step, offset = grid.steps(scales, 1)
    levels = torch.arange(grid.low, grid.high + 1)[:, None] * step + (0 if offset is None else offset)
    least = (weight - grid.spread(levels, 512)).abs().amin(0)
    assert ((weight - taken).abs() <= least + 1e-5 * weight.abs().max()).all()


@each_grid
@settings(max_examples=8, deadline=None)
@given(weight=weights, seed=st.integers(0, 2**32 - 1))
def test_the_fit_is_never_worse_than_min_max(grid: KGrid, weight: Tensor, seed: int) -> None:
    importance = torch.rand(512, generator=torch.Generator().manual_seed(seed)) ** 4
    plain = grid.find(weight, clip=False)
    assert error(grid, weight, grid.find(weight)) <= error(grid, weight, plain)
    fitted = grid.find(weight, importance)
    assert error(grid, weight, fitted, importance) <= error(grid, weight, plain, importance)


@each_grid
@pytest.mark.parametrize("source", ["gaussian", "heavy tails", "student"])
def test_the_fit_is_better_than_llama_cpp_s(grid: KGrid, source: str) -> None:
    if source == "student":
        weight = load_file(STUDENT)["model.layers.1.mlp.down_proj.weight"][:64].float()
    else:
        weight = heavy_tailed(64, 512, seed=0, power=1.0 if source == "gaussian" else 1.5)
    columns = weight.shape[1]
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-2
    theirs = min(float((llama_cpp(grid, weight, used) - weight).square().sum()) for used in (None, torch.ones(columns)))
    assert error(grid, weight, grid.find(weight)) < theirs
    theirs = float(((llama_cpp(grid, weight, importance) - weight).square() * importance).sum())
    ours = error(grid, weight, grid.find(weight, importance), importance)
    assert ours < theirs * (REACHED[grid.bits] if source == "gaussian" else 1)


@each_grid
@settings(max_examples=8, deadline=None)
@given(weight=weights)
def test_steps_the_format_can_hold_are_stored_as_they_are(grid: KGrid, weight: Tensor) -> None:
    steps = grid.steps(grid.find(weight), 1)
    for again, once in zip(grid.steps(grid.store(steps), 1), steps, strict=True):
        assert (again is None and once is None) or torch.equal(again, once)


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_a_minimum_that_cannot_be_held_does_not_disturb_the_others(bits: int) -> None:
    grid = KGrid(bits)
    step, offset = grid.steps(grid.find(heavy_tailed(1, 256, seed=0)), 1)
    assert offset is not None
    learned = offset.clone()
    learned[0, 3] = 2 * offset.abs().max()  # of the wrong sign, as learning may leave it
    stored = grid.steps(grid.store(Steps(step, learned)), 1)
    assert stored.offset is not None
    kept = torch.arange(offset.shape[1]) != 3
    assert torch.allclose(stored.offset[:, kept], offset[:, kept], atol=float(offset.abs().max()) / 30)
    assert stored.offset[0, 3] == 0


@each_grid
def test_inputs_that_do_not_count_do_not_disturb(grid: KGrid) -> None:
    weight = heavy_tailed(4, 512, seed=0)
    importance = torch.ones(512)
    importance[:64] = 0  # whole groups
    fitted = grid.find(weight, importance)
    taken = grid.dequantize(grid.quantize(weight, fitted), fitted)
    assert taken.isfinite().all()
    assert (taken - weight)[:, :64].abs().amax() < weight[:, :64].abs().amax()


@each_grid
def test_odd_super_blocks_are_fitted(grid: KGrid) -> None:
    rows = torch.zeros(4, 256)
    rows[1] = -0.75  # one number
    rows[2] = 0.75
    rows[3, 100] = -3.0  # one weight
    scales = grid.find(rows)
    taken = grid.dequantize(grid.quantize(rows, scales), scales)
    assert torch.allclose(taken, rows, rtol=2e-3, atol=5e-3)


def test_rows_that_no_super_block_divides_are_refused() -> None:
    with pytest.raises(QuantError, match="super-blocks of 256, which do not divide 384 inputs"):
        KGrid(4).find(torch.zeros(1, 384))


@pytest.mark.parametrize("value", [1e8, float("nan")])
def test_a_scale_beyond_fp16_is_refused(value: float) -> None:
    with pytest.raises(QuantError, match="65504"):
        KGrid(4).find(torch.full((1, 256), value))
