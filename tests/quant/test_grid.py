"""The grids, against brute force over all their levels."""

import pytest
import torch
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import QuantError
from quant.grid import SHRINKS, FloatGrid, Grid, IntGrid, Scales

INTEGERS: list[Grid] = [IntGrid(bits, symmetric) for bits in (2, 3, 4, 5, 6, 8) for symmetric in (True, False)]
FLOATS: list[Grid] = [
    FloatGrid("e4m3"), FloatGrid("e5m2"), FloatGrid("e4m3", "tensor"), FloatGrid("e4m3", "block"),
    FloatGrid("nf4", 32, "fp16"), FloatGrid("e2m1", 32, "mx"), FloatGrid("e2m1", 16, "nv"),
]  # fmt: skip
ODD: list[Grid] = [
    IntGrid(4, True, 48),
    IntGrid(3, False, None),
    IntGrid(8, True, "tensor"),
    FloatGrid("nf4", 24, "fp16"),
]
GRIDS = INTEGERS + FLOATS + ODD
# Down to 1e-3, so that no scale is a subnormal fp16 number, whose coarse steps would be what is tested.
weights = st.lists(
    st.floats(1e-3, 100).flatmap(lambda x: st.sampled_from([x, -x])) | st.just(0.0), min_size=64, max_size=64
).map(lambda values: torch.tensor(values).reshape(1, 64))


def levels(grid: Grid, scales: Scales) -> torch.Tensor:
    """Every number the grid has, [levels, 64]."""
    step, offset = (None if part is None else grid.spread(part, 64) for part in grid.steps(scales, 1))
    codes = torch.arange(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1)).to(torch.int8)
    found = sorted({float(level) for level in grid.decode(codes) if grid.low <= level <= grid.high})
    return torch.tensor(found)[:, None] * step + (0 if offset is None else offset)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=40, deadline=None)
@given(weight=weights)
def test_a_weight_takes_the_nearest_of_all_levels(grid: Grid, weight: torch.Tensor) -> None:
    scales = grid.find(weight)
    taken = grid.dequantize(grid.quantize(weight, scales), scales)
    least = (weight - levels(grid, scales)).abs().amin(0)
    assert ((weight - taken).abs() <= least + 1e-5 * weight.abs().max()).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=40, deadline=None)
@given(weight=weights)
def test_a_level_stays_where_it_is(grid: Grid, weight: torch.Tensor) -> None:
    scales = grid.find(weight)
    codes = grid.quantize(weight, scales)
    again = grid.quantize(grid.dequantize(codes, scales), scales)
    alive = grid.spread(grid.steps(scales, 1).step, 64) != 0
    assert torch.equal(grid.decode(again)[alive], grid.decode(codes)[alive])


@pytest.mark.parametrize("grid", INTEGERS, ids=str)
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
    for grid in INTEGERS:
        scales = grid.find(weight)
        whole = grid.quantize(weight, scales)
        for column in (0, 31, 32, 63):
            group = column // 32
            own = scales.map(lambda part, group=group: part[:, group, None])  # type: ignore[misc]
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


def test_eight_bit_floats_are_torch_s() -> None:
    """All 256 codes, against the conversion of torch's own type."""
    codes = torch.arange(-128, 128).to(torch.int8)[None]
    for name, kind in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        grid = FloatGrid(name)  # type: ignore[arg-type]
        finite = grid.decode(codes).isfinite() & (grid.decode(codes) != 0)
        assert torch.equal(grid.decode(codes)[finite], codes.view(kind).float()[finite])
        assert torch.equal(grid.encode(grid.snap(grid.decode(codes)[finite])), codes[finite])


def test_four_bit_floats_are_those_of_compressed_tensors() -> None:
    position = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])])
    position = torch.cat([position, -position])
    theirs = FP4_E2M1_DATA.cast_to_fp4(position.clone())
    assert torch.equal(FloatGrid("e2m1").snap(position), theirs)


def test_an_mx_scale_is_a_power_of_two_and_an_nv_scale_an_e4m3_over_one_number() -> None:
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    mx, nv = FloatGrid("e2m1", 32, "mx"), FloatGrid("e2m1", 16, "nv")
    scales = mx.find(weight)
    assert scales.scale.dtype == torch.uint8
    assert torch.equal(mx.steps(scales, 7).step.log2(), scales.scale.float() - 127)
    scales = nv.find(weight)
    assert scales.scale.dtype == torch.float8_e4m3fn and scales.outer is not None and scales.outer.shape == (1, 1)
    assert float(scales.scale.float().max()) == 448


def test_a_block_of_fp8_shares_its_scale_over_rows_and_columns() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    scale = FloatGrid("e4m3", "block").find(weight).scale
    assert scale.shape == (2, 3)
    assert scale[1, 2] == weight[128:, 256:].abs().max() / 448


def test_a_last_group_may_be_shorter() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    whole, last = IntGrid(4, True, 48).find(weight), IntGrid(4, True, 16).find(weight[:, 48:])
    assert whole.scale.shape == (5, 2)
    assert torch.equal(whole.scale[:, 1:], last.scale)


def test_importance_weighs_the_error() -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(64, generator=torch.Generator().manual_seed(1)).pow(4)
    for grid in (IntGrid(3), IntGrid(4, False), FloatGrid("nf4", 32, "fp16")):

        def error(scales: Scales, grid: Grid = grid) -> float:
            return float(
                ((grid.dequantize(grid.quantize(weight, scales), scales) - weight).square() * importance).sum()
            )

        assert error(grid.find(weight, importance)) < error(grid.find(weight))
