"""Each path computes what the reference does, the fastest one is taken, and the integers stay as they are."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from quant import QuantError, quantize
from quant.activations import Activations
from quant.calibrate import Batch
from quant.grid import FloatGrid, Grid, IntGrid, KGrid
from quant.kernels import PATHS, Float8Inputs, accelerate, alternate
from quant.linear import QuantLinear
from quant.methods import RTN

GRIDS: list[Grid] = [
    IntGrid(4), IntGrid(4, symmetric=False), IntGrid(3, group_size=64), IntGrid(2, group_size=128), KGrid(4),
    IntGrid(8, group_size=None), IntGrid(8), IntGrid(6, group_size="tensor"), IntGrid(4, group_size=None),
    FloatGrid("nf4", 32, "fp16"),
]  # fmt: skip
NAMES = ["unquantized", "reference", "dequantized once to bfloat16", "int4 packed"]


def layer_of(grid: Grid, rows: int = 48, columns: int = 256, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.round(nn.Linear(columns, rows, bias), grid)


def favour(name: str) -> Callable[[Mapping[str, object]], dict[str, float]]:
    """A clock by which the path whose name starts so is the fastest."""
    return lambda runs: {run: 1.0 if run.startswith(name) else 2.0 for run in runs}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_path_is_as_near_the_reference_as_it_says(grid: Grid, dtype: torch.dtype) -> None:
    layer, x = layer_of(grid), torch.randn(3, 5, 256).to(dtype)
    expected = functional.linear(x.float(), layer.dequantize(), layer.bias)
    for kind in PATHS:
        path = kind.of(layer, dtype)
        if path is None:
            continue
        bound = path.error + (0.006 if dtype == torch.bfloat16 else 1e-6)  # rounding to dtype comes on top
        away = path(x.flatten(0, 1), layer.bias.to(dtype)).view_as(expected) - expected
        assert away.abs().max() <= bound * expected.abs().max(), path.name


def test_which_grids_have_a_kernel() -> None:
    def offered(grid: Grid, **shape: int) -> set[str]:
        paths = (kind.of(layer_of(grid, **shape), torch.bfloat16) for kind in PATHS[1:])
        return {path.name for path in paths if path is not None}

    assert offered(IntGrid(4)) == offered(IntGrid(2, False, 64)) == {"int4 packed"}
    assert offered(IntGrid(8, group_size=None)) == {"int8 packed", "int8 inputs"}
    assert offered(IntGrid(8)) == offered(FloatGrid()) == offered(KGrid(6)) == set()
    # rows that the kernels would read past the end of, or refuse
    assert offered(IntGrid(8, group_size=None), columns=40) == {"int8 inputs"}
    assert offered(IntGrid(4), columns=80) == offered(IntGrid(4), rows=24) == set()


def test_fp8_multiplies_by_what_the_codes_stand_for() -> None:
    layer, x = layer_of(FloatGrid(), bias=False), torch.randn(7, 256)
    per_token = Activations("e4m3", "token", dynamic=True)
    y = Float8Inputs(layer.codes().view(torch.float8_e4m3fn), layer.scale, per_token)(x, None)
    expected = functional.linear(per_token.round(x), layer.dequantize())
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-3)
    assert Float8Inputs.of(layer, torch.bfloat16) is None  # on a CPU torch only emulates it


def test_a_model_in_float32_answers_as_before(model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, RTN(bits=4))
    with torch.no_grad():
        before = model(**inputs(batches[0])).logits
        report = accelerate(model, rows=(8,), clock=favour("dequantized"))
        after = model(**inputs(batches[0])).logits
    assert torch.equal(after, before)
    assert set(report) == {n for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert "lm_head" in report


def test_a_model_may_compute_in_bfloat16_and_stay_float32(model: nn.Module, batches: list[Batch]) -> None:
    quantize(model, RTN(bits=4, embedding_bits=16))
    with torch.no_grad():
        before = model(**inputs(batches[0])).logits
        report = accelerate(model, dtype=torch.bfloat16, clock=favour("int4"))
        after = model(**inputs(batches[0])).logits
    assert report["model.layers.0.mlp.up_proj"] == "rows 1: int4 packed (2x), 128: int4 packed (2x)"
    assert after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()


def inputs(batch: Batch) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@given(st.lists(st.permutations([1.0, 2.0, 3.0]), min_size=3, max_size=3))
def test_each_number_of_rows_gets_its_fastest_path(seconds: list[list[float]]) -> None:
    model = nn.Sequential(layer_of(IntGrid(4)))
    measured = iter(seconds)
    accelerate(model, (1, 8, 64), torch.bfloat16, clock=lambda _: dict(zip(NAMES, [1.0, *next(measured)], strict=True)))
    layer = model[0]
    for rows, index in ((1, 0), (2, 1), (8, 1), (9, 2), (64, 2), (500, 2)):
        best = NAMES[1:][seconds[index].index(1.0)]
        path = layer.kernel and layer.kernel.path(rows)
        assert (path.name if path else "reference") == best
    assert (layer.path == "reference") == all(times[0] == 1.0 for times in seconds)


def test_a_layer_without_a_kernel_says_so() -> None:
    model = nn.Sequential(layer_of(IntGrid(8)), layer_of(IntGrid(4)))
    report = accelerate(model, (1,), torch.bfloat16, dense=False, clock=favour("int4"))
    assert report == {"0": "reference", "1": "rows 1: int4 packed (2x)"}
    assert "reference" in repr(model[0]) and "int4 packed (2x)" in repr(model[1])


def test_activations_are_rounded_only_where_that_is_allowed() -> None:
    model = nn.Sequential(layer_of(IntGrid(8, group_size=None)))
    assert "dynamic" not in accelerate(model, (4,), clock=favour("int8"))["0"]
    assert "int8 inputs" in accelerate(model, (4,), round_inputs=True, clock=favour("int8 inputs"))["0"]


@pytest.mark.parametrize("activations", [
    Activations("int8", "token", dynamic=True), Activations("int8", "tensor", dynamic=True),
    Activations("int8", "tensor", dynamic=False),
], ids=str)  # fmt: skip
def test_a_layer_that_rounds_its_inputs_keeps_its_numbers(activations: Activations) -> None:
    torch.manual_seed(0)
    scale = None if activations.dynamic else torch.tensor([0.02])
    layer = QuantLinear.round(nn.Linear(256, 48), IntGrid(8, group_size=None), True, activations, scale)
    x = torch.randn(2, 3, 256)
    x[0, 0], x[1, 2] = 0, -x[1, 2].abs()
    expected = layer(x)
    for name in ("int8 inputs", "dequantized"):
        assert name in accelerate(nn.Sequential(layer), (8,), torch.bfloat16, clock=favour(name))["0"]
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_goes_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten
    monkeypatch.setattr(aten, "_weight_int4pack_mm_for_cpu", lambda x, *_: x.new_full((len(x), 48), torch.nan))
    monkeypatch.setattr(aten, "_weight_int8pack_mm", lambda x, *_: x.new_zeros(len(x), 48))
    model = nn.Sequential(layer_of(IntGrid(4)), layer_of(IntGrid(8, group_size=None)))
    report = accelerate(model, (1,), torch.bfloat16, clock=favour("int"))
    assert set(report.values()) == {"reference"}


def test_the_state_dict_is_the_packed_integers() -> None:
    model = nn.Sequential(layer_of(IntGrid(4)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    accelerate(model, dtype=torch.bfloat16, clock=favour("int4"))
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    fresh = nn.Sequential(QuantLinear(256, 48, IntGrid(4), after["0.bias"]))
    fresh.load_state_dict(after)
    assert torch.equal(fresh[0].dequantize(), model[0].dequantize())


def test_new_integers_void_the_kernel() -> None:
    model, other = nn.Sequential(layer_of(IntGrid(4))), layer_of(IntGrid(4))
    other.hold(other.codes().flip(0), other.scales)
    x = torch.randn(3, 256)

    def accelerated() -> QuantLinear:
        accelerate(model, clock=favour("dequantized"))
        assert "dequantized" in model[0].path and "dequantized" in deepcopy(model)[0].path
        return model[0]

    accelerated().load_state_dict(other.state_dict())
    assert model[0].path == "reference" and torch.equal(model[0](x), other(x))
    accelerated().hold(other.codes().flip(0), other.scales)
    assert model[0].path == "reference"
    assert torch.equal(model[0](x), functional.linear(x, model[0].dequantize(), model[0].bias))


def test_a_gradient_goes_through_the_reference() -> None:
    layer = layer_of(IntGrid(4)).to(torch.bfloat16)
    x = torch.randn(2, 256, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    expected, x.grad = x.grad, None
    accelerate(nn.Sequential(layer), dtype=torch.bfloat16, clock=favour("int4"))
    layer(x).sum().backward()
    assert "int4" in layer.path and torch.equal(x.grad, expected)


def test_shapes_and_types_are_those_of_the_input() -> None:
    layer = layer_of(IntGrid(4))
    accelerate(nn.Sequential(layer), dtype=torch.bfloat16, clock=favour("int4"))
    for shape in ((256,), (2, 256), (2, 3, 256), (0, 256)):
        y = layer(torch.randn(shape, dtype=torch.float16) if shape[0] == 2 else torch.randn(shape))
        assert y.shape == (*shape[:-1], 48)
        assert y.dtype == (torch.float16 if shape[0] == 2 else torch.float32)


def test_the_clock_takes_turns_and_drops_the_hopeless() -> None:
    calls: list[str] = []
    runs: dict[str, Callable[[], object]] = {
        "fast": lambda: calls.append("fast"),
        "slow": lambda: (calls.append("slow"), time.sleep(0.01)),
    }
    seconds = alternate(runs, seconds=0.02)
    assert seconds["fast"] < 0.01 <= seconds["slow"]
    assert calls[:4] == ["fast", "slow"] * 2 and calls.count("slow") == 2 and len(calls) > 4


def test_rows_are_counts() -> None:
    with pytest.raises(QuantError, match=r"rows are counts of tokens, got \(0,\)"):
        accelerate(nn.Sequential(), rows=(0,))
