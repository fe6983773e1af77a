"""The grids, against brute force over all their levels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import QuantError
from quant.grid import SHRINKS, Grid, IntGrid, Scales

GRIDS = [IntGrid(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
# Down to 1e-3, so that no scale is a subnormal fp16 number, whose coarse steps would be what is tested.
weights = st.lists(
    st.floats(1e-3, 100).flatmap(lambda x: st.sampled_from([x, -x])) | st.just(0.0), min_size=64, max_size=64
).map(lambda values: torch.tensor(values).reshape(1, 64))


def levels(grid: Grid, scales: Scales) -> torch.Tensor:
    """Every number the grid has, [levels, groups]."""
    step, offset = grid.steps(scales, 1)
    codes = torch.arange(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1)).to(torch.int8)
    found = sorted({float(level) for level in grid.decode(codes) if grid.low <= level <= grid.high})
    return torch.tensor(found)[:, None] * step + (0 if offset is None else offset)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=40, deadline=None)
@given(weight=weights)
def test_a_weight_takes_the_nearest_of_all_levels(grid: Grid, weight: torch.Tensor) -> None:
    scales = grid.find(weight)
    taken = grid.dequantize(grid.quantize(weight, scales), scales)
    off = (weight - taken).abs().unflatten(1, (-1, 32))
    least = (weight.unflatten(1, (-1, 32)) - levels(grid, scales)[:, :, None]).abs().amin(0)
    assert (off <= least + 1e-5 * weight.abs().max()).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=40, deadline=None)
@given(weight=weights)
def test_a_level_stays_where_it_is(grid: Grid, weight: torch.Tensor) -> None:
    scales = grid.find(weight)
    codes = grid.quantize(weight, scales)
    again = grid.quantize(grid.dequantize(codes, scales), scales)
    assert torch.equal(
        again * (scales.scale != 0).repeat_interleave(32, 1), codes * (scales.scale != 0).repeat_interleave(32, 1)
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_in_range_and_all_of_it_is_used(grid: Grid) -> None:
    weight = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    codes = grid.quantize(weight, grid.find(weight))
    assert (grid.decode(codes).min(), grid.decode(codes).max()) == (grid.low, grid.high)


@pytest.mark.parametrize("bits", [3, 4])
def test_the_scale_is_the_best_of_the_shrinks(bits: int) -> None:
    weight = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    grid = IntGrid(bits)
    scales = grid.find(weight)

    def error(tried: Scales) -> torch.Tensor:
        return (grid.dequantize(grid.quantize(weight, tried), tried) - weight).square().sum(-1)

    peak = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    for shrink in SHRINKS:
        assert (error(scales) <= error(Scales((peak * shrink / grid.low).half()))).all()


@pytest.mark.parametrize("tail", [-1.0, 1.0])
def test_the_longer_tail_gets_the_extra_level(tail: float) -> None:
    weight = torch.zeros(1, 32)
    weight[0, :4] = tail * torch.tensor([2.0, 1.0, -1.0, 0.0])
    scales = IntGrid(2).find(weight)
    assert torch.equal(IntGrid(2).dequantize(IntGrid(2).quantize(weight, scales), scales), weight)


def test_zeros_stay_zeros() -> None:
    for grid in GRIDS:
        scales = grid.find(torch.zeros(2, 32))
        assert not grid.dequantize(grid.quantize(torch.zeros(2, 32), scales), scales).any()


def test_one_column_is_rounded_as_it_is_in_its_row() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for grid in GRIDS:
        scales = grid.find(weight)
        whole = grid.quantize(weight, scales)
        for column in (0, 31, 32, 63):
            group = column // 32
            own = Scales(*(None if part is None else part[:, group, None] for part in scales))
            assert torch.equal(grid.quantize(weight[:, [column]], own), whole[:, [column]])


def test_rounding_lets_the_gradient_through_inside_the_range_only() -> None:
    position = torch.tensor([[-9.0, -8.0, -0.4, 0.6, 7.0, 7.2]], requires_grad=True)
    rounded = IntGrid(4).round_through(position)
    rounded.sum().backward()
    assert rounded.tolist() == [[-8, -8, 0, 1, 7, 7]]
    assert position.grad is not None
    assert position.grad.tolist() == [[0, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("value", [1e6, float("inf")])
def test_a_scale_beyond_fp16_is_refused(value: float) -> None:
    with pytest.raises(QuantError, match="65504"):
        IntGrid(4).find(torch.full((1, 32), value))
