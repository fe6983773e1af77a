"""Layers in compressed-tensors' layouts: its own decompressors read them, and vLLM's rules find a kernel."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quant import QuantError
from quant.activations import Activations
from quant.exports.compressed_layers import scheme, tensors, weight
from quant.grid import FloatGrid, Grid, IntGrid, KGrid
from quant.linear import QuantLinear

TOKEN, STATIC = Activations("int8", "token", True), Activations("int8", "tensor", False)
FP8_TOKEN, FP8_STATIC = Activations("e4m3", "token", True), Activations("e4m3", "tensor", False)
FP8_GROUP, GROUP = Activations("e4m3", "group", True), Activations("int8", "group", True)

# What vLLM 0.33 makes of a layer.
KERNELS: list[tuple[Grid, Activations | None, str | None]] = [
    *((IntGrid(bits, True, size), None, "WNA16") for bits in (2, 3, 4, 5, 6, 8) for size in (32, None)),
    (IntGrid(4, True, "tensor"), None, "WNA16"),
    (IntGrid(4, True, 256), None, "WNA16"),
    (IntGrid(8, True, None), TOKEN, "W8A8Int8 dynamic"),
    (IntGrid(8, True, "tensor"), TOKEN, "W8A8Int8 dynamic"),
    (IntGrid(8, True, None), STATIC, "W8A8Int8 static"),
    (IntGrid(8, True, None), GROUP, "WNA8Int"),
    (IntGrid(8, True, 32), TOKEN, "WNA8Int"),
    (IntGrid(4, True, 128), TOKEN, "WNA8Int"),
    (IntGrid(4, True, 128), FP8_TOKEN, "W4A8Fp8"),
    (IntGrid(8, True, 32), STATIC, None),
    (IntGrid(8, True, None), Activations("int8", "tensor", True), None),
    *((FloatGrid("e4m3", size), None, "W8A16Fp8") for size in (None, "tensor", "block")),
    *((FloatGrid("e4m3", size), FP8_TOKEN, "W8A8Fp8 dynamic") for size in (None, "tensor")),
    *((FloatGrid("e4m3", size), FP8_STATIC, "W8A8Fp8 static") for size in (None, "tensor")),
    (FloatGrid("e4m3", "block"), FP8_GROUP, "W8A8Fp8 dynamic"),
    (FloatGrid("e4m3", 32), None, None),
    (FloatGrid("e2m1", 16, "nv"), None, "W4A4Fp4"),
    (FloatGrid("e2m1", 32, "mx"), None, "W4A4Mxfp4"),
]


def made(grid: Grid, inputs: Activations | None = None, rows: int = 40, columns: int = 128) -> QuantLinear:
    torch.manual_seed(0)
    step = None if inputs is None or inputs.dynamic else torch.tensor([0.02])
    return QuantLinear.round(nn.Linear(columns, rows), grid, activations=inputs, input_scale=step)


def decompressed(layer: QuantLinear) -> torch.Tensor:
    described = scheme("layer", layer)
    checked = QuantizationScheme.model_validate({"targets": ["Linear"], **described})
    compressor: Any = BaseCompressor.get_value_from_registry(described["format"])
    parts = tensors(layer)
    if parts["weight_scale"].dtype == torch.float16:
        parts["weight_scale"] = parts["weight_scale"].float()  # as a reader in float32 does
    return compressor.decompress(parts, checked)["weight"]


@pytest.mark.parametrize(("grid", "inputs"), [kind[:2] for kind in KERNELS], ids=str)
def test_compressed_tensors_reads_what_the_layer_holds(grid: Grid, inputs: Activations | None) -> None:
    layer = made(grid, inputs)
    found = decompressed(layer)
    assert found.dtype == (torch.bfloat16 if "e2m1" in str(grid) else torch.float32)
    assert torch.equal(found, layer.dequantize().to(found.dtype))


@given(
    rows=st.integers(1, 300), groups=st.integers(1, 6), bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    size=st.sampled_from([16, 32, 128, None, "tensor"]),
)  # fmt: skip
def test_any_shape_of_integers_comes_back(rows: int, groups: int, bits: int, size: Any) -> None:
    columns = groups * (size if isinstance(size, int) else 13)
    layer = made(IntGrid(bits, True, size), None, rows, columns)
    assert torch.equal(decompressed(layer), layer.dequantize())
    assert torch.equal(weight("layer", scheme("layer", layer), tensors(layer)), layer.dequantize())


@given(
    rows=st.integers(1, 300), groups=st.integers(1, 10),
    grid=st.sampled_from([grid for grid, _, _ in KERNELS if isinstance(grid, FloatGrid)]),
)  # fmt: skip
def test_any_shape_of_floats_comes_back(rows: int, groups: int, grid: FloatGrid) -> None:
    layer = made(grid, None, rows, 32 * groups)
    found = decompressed(layer)
    assert torch.equal(found, layer.dequantize().to(found.dtype))
    assert torch.equal(weight("layer", scheme("layer", layer), tensors(layer)), layer.dequantize())


@pytest.mark.parametrize("grid", [IntGrid(4), IntGrid(2), FloatGrid("e4m3"), FloatGrid("e2m1", 16, "nv")], ids=str)
def test_pruned_weights_stay_zero_in_any_layout(grid: Grid) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 40)
    with torch.no_grad():
        kept = linear.weight.unflatten(1, (-1, 4)).abs().argsort(-1).argsort(-1) >= 2
        linear.weight *= kept.flatten(1)
    assert not decompressed(QuantLinear.round(linear, grid))[~kept.flatten(1)].any()


def test_what_no_layout_holds_is_refused_with_the_way_out() -> None:
    for layer, said in (
        (made(KGrid(4), None, 4, 256), "has no K-quants; export gguf, or use grid 'int'"),
        (made(IntGrid(4, symmetric=False)), "cannot hold fp16 minima; use symmetric=True, or export gguf"),
        (made(FloatGrid("nf4", 32, "fp16")), "has no nf4 with fp16 scales; use grid 'int', 'mx' or 'nv'"),
        (made(FloatGrid("e5m2")), "has no e5m2 with float32 scales"),
        (made(IntGrid(4, True, 64), None, 4, 96), "groups of 64 do not divide 96 inputs; use group_size None, or"),
        (made(FloatGrid("e2m1", 32, "mx"), None, 4, 48), "groups of 32 do not divide 48 inputs; use grid 'int'"),
        (made(FloatGrid("e4m3", "block"), FP8_GROUP, 4, 192), "groups of 128 do not divide 192 inputs; use activ"),
    ):
        with pytest.raises(QuantError, match=f"^mlp.down: .*{said}"):
            scheme("mlp.down", layer)


def test_a_file_of_others_that_cannot_be_read_says_so() -> None:
    layer = made(IntGrid(4))
    described, parts = scheme("layer", layer), tensors(layer)
    with pytest.raises(QuantError, match=r"^layer: asymmetric weights cannot be read"):
        weight("layer", {**described, "weights": {**described["weights"], "symmetric": False}}, parts)
    with pytest.raises(QuantError, match=r"^layer: the file has no weight_shape, which pack-quantized needs"):
        weight("layer", described, {name: part for name, part in parts.items() if name != "weight_shape"})
    tensor = {**described["weights"], "strategy": "tensor", "group_size": None}
    whole = made(IntGrid(4, True, "tensor"))
    parts = {**tensors(whole), "weight_scale": whole.scale.reshape(1)}
    assert torch.equal(weight("layer", {**described, "weights": tensor}, parts), whole.dequantize())


def vllm_kernel(described: dict[str, Any]) -> str | None:
    """The scheme that vLLM 0.33 selects (`compressed_tensors.py`, `_get_scheme_from_parts`), by its conditions.

    Checked once against that very file, with every description in `KERNELS`.
    """
    asked, given, format = described["weights"], described["input_activations"], described["format"]
    kind, strategy, size = (asked["type"], asked["num_bits"]), asked["strategy"], asked["group_size"]
    inputs = None if given is None else (given["type"], given["strategy"], given["dynamic"])
    grouped, packed = strategy in ("channel", "group"), format == "pack-quantized"
    rounds = format in ("int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized")
    fp8 = rounds and asked["type"] == "float" and strategy in ("tensor", "channel", "block")
    int8 = rounds and kind[1] == 8 and strategy in ("tensor", "channel")
    token, group, static = ("token", True), ("group", True), ("tensor", False)
    rules: list[tuple[str, bool]] = [
        ("W4A4Fp4", kind == ("float", 4) and strategy == "tensor_group" and size == 16 and inputs is None),
        ("W4A4Mxfp4", kind == ("float", 4) and strategy == "group" and size == 32),
        ("W4A8Fp8", kind == ("int", 4) and strategy == "group" and inputs == ("float", *token)),  # on a H100
        ("WNA8Int", kind[0] == "int" and grouped and packed and inputs in (("int", *token), ("int", *group))),
        ("WNA16", grouped and packed and inputs is None and 2 <= kind[1] <= 8),
        ("W8A8Fp8 dynamic", fp8 and inputs is not None and inputs[0] == "float" and inputs[2]),
        ("W8A8Fp8 static", fp8 and inputs == ("float", *static)),
        ("W8A16Fp8", fp8 and inputs is None),
        ("W8A8Int8 static", int8 and inputs is not None and inputs[1:] == static),
        ("W8A8Int8 dynamic", int8 and inputs is not None and inputs[1:] == token),
    ]
    return next((name for name, holds in rules if holds), None)


@pytest.mark.parametrize(("grid", "inputs", "kernel"), KERNELS, ids=str)
def test_vllm_has_a_kernel_for_it(grid: Grid, inputs: Activations | None, kernel: str | None) -> None:
    assert vllm_kernel(scheme("layer", made(grid, inputs))) == kernel
