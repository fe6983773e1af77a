"""SmoothQuant: equation 4 by hand, nothing changed until rounding, and what it is for: outliers of activations."""

import pytest
import torch
from torch import Tensor, nn

from quant import QuantError, quantize
from quant.activations import Activations
from quant.anatomy import all_linears
from quant.calibrate import walk
from quant.grid import IntGrid
from quant.linear import QuantLinear
from quant.methods.smoothquant import SmoothQuant, smooth
from tests.quant.architectures import batches, build, distance, says
from tests.quant.methods.outliers import plant

Q = "model.layers.0.self_attn.q_proj"


def layer(model: nn.Module, name: str = Q) -> QuantLinear:
    found = model.get_submodule(name)
    assert isinstance(found, QuantLinear)
    return found


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_scales_are_those_of_equation_4(strength: float) -> None:
    model = build("llama")
    stage = next(walk(model, batches()))
    norm = stage.block.get_parameter("input_layernorm.weight")
    gain = norm.detach().clone()
    seen: list[Tensor] = []
    stage.observe(lambda name, rows: seen.append(rows) if name == Q else None)
    v = "model.layers.0.self_attn.v_proj"
    weights = {n: m.weight.detach().clone() for n, m in stage.layers.items()}
    smooth(stage, strength)
    # v is divided by its own scale, the one that o_proj is multiplied by: undo that to read the norm's.
    o = "model.layers.0.self_attn.o_proj"
    rows = (stage.layers[o].weight / weights[o])[0].view(4, 16)[::2].flatten()
    weights[v] /= rows[:, None]
    largest = torch.stack([weights[n].abs().amax(0) for n in (Q, Q.replace("q_", "k_"), v)]).amax(0)
    expected = torch.cat(seen).abs().amax(0) ** strength / largest ** (1 - strength)
    torch.testing.assert_close(gain / norm.detach(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["llama", "gemma", "phi", "bert", "modernbert"])
def test_smoothing_changes_nothing(name: str) -> None:
    model = build(name)
    wanted = says(model)
    for stage in walk(model, batches()):
        smooth(stage, 0.5)
    assert distance(model, wanted) < 1e-5


def test_strength_0_is_plain_w8a8() -> None:
    model, plain = build("llama"), build("llama")
    quantize(model, SmoothQuant(strength=0, embedding_bits=16), batches())
    for name, linear in all_linears(plain):
        inputs = Activations("int8", "token", dynamic=True)
        plain.set_submodule(name, QuantLinear.round(linear, IntGrid(8, True, None), activations=inputs))
    for name, module in plain.named_modules():
        if isinstance(module, QuantLinear):
            assert torch.equal(layer(model, name).packed, module.packed)
    assert torch.equal(says(model), says(plain))


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_it_beats_plain_w8a8_where_activations_have_outliers(activations: str) -> None:
    wanted = says(plant(build("llama"), 60))
    plain, smoothed = (
        distance(quantize(plant(build("llama"), 60), SmoothQuant(strength=strength, activations=activations,  # type: ignore[arg-type]
                 embedding_bits=16), batches()), wanted)
        for strength in (0, 0.5)
    )  # fmt: skip
    assert smoothed < 0.35 * plain


def test_static_steps_are_those_of_the_smoothed_inputs() -> None:
    model = quantize(plant(build("llama"), 60), SmoothQuant(activations="static"), batches())
    sharp = quantize(plant(build("llama"), 60), SmoothQuant(activations="static", strength=0), batches())
    assert layer(model).activations == Activations("int8", "tensor", dynamic=False)
    assert 0 < float(layer(model).input_scale) < 0.3 * float(layer(sharp).input_scale)  # type: ignore[arg-type]


def test_gptq_may_round_the_weights() -> None:
    model = build("llama")
    wanted = says(model)
    nearest = quantize(build("llama"), SmoothQuant(embedding_bits=16), batches())
    quantize(model, SmoothQuant(rounding="gptq", embedding_bits=16), batches())
    assert not torch.equal(layer(model).packed, layer(nearest).packed)
    assert torch.equal(layer(model).scale, layer(nearest).scale)
    assert distance(model, wanted) < 0.06


def test_other_numbers_are_refused() -> None:
    for wrong, said in (
        ({"strength": 1.5}, "strength=1.5; use 0 to 1"),
        ({"bits": 4}, "smoothquant is int8 with a scale a row"),
        ({"group_size": 32}, "smoothquant is int8"),
    ):
        with pytest.raises(QuantError, match=said):
            SmoothQuant(**wrong)  # type: ignore[arg-type]
    with pytest.raises(QuantError, match="smoothquant needs calibration batches"):
        quantize(build("llama"), SmoothQuant())
