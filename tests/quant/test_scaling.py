"""Folds: which there are in an architecture, written down by hand, and that they change nothing."""

import pytest
import torch
from torch import Tensor, nn

from quant.anatomy import blocks
from quant.calibrate import walk
from quant.scaling import Form, NormFold, PairFold, folds, probe
from tests.quant.architectures import ARCHITECTURES, batches, build, distance, says

VALUES = {"self_attn.v_proj": "self_attn.o_proj"}
GATED = {"mlp.up_proj": "mlp.down_proj"}
QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
LLAMA = VALUES | GATED | {"input_layernorm": QKV, "post_attention_layernorm": "mlp.gate_proj mlp.up_proj"}
FUSED = {"attn.Wqkv": "attn.Wo", "mlp.Wi": "mlp.Wo", "mlp_norm": "mlp.Wi"}
# BERT adds what its norms make to the residual stream, Gemma 3 what its post-norms make: neither can be scaled.
BERT = {"attention.self.value": "attention.output.dense"}
EXPECTED = {
    "llama": [LLAMA] * 2, "mistral": [LLAMA] * 2, "qwen2": [LLAMA] * 2, "qwen3": [LLAMA] * 2, "gemma": [LLAMA] * 2,
    "gemma3_text": [
        VALUES | GATED | {"input_layernorm": QKV, "pre_feedforward_layernorm": "mlp.gate_proj mlp.up_proj"}
    ] * 2,
    "phi": [{"self_attn.v_proj": "self_attn.dense", "input_layernorm": f"{QKV} mlp.fc1"}] * 2,
    "phi3": [{
        "self_attn.qkv_proj": "self_attn.o_proj", "mlp.gate_up_proj": "mlp.down_proj",
        "input_layernorm": "self_attn.qkv_proj", "post_attention_layernorm": "mlp.gate_up_proj",
    }] * 2,
    "bert": [BERT] * 2, "roberta": [BERT] * 2,
    "modernbert": [FUSED, FUSED | {"attn_norm": "attn.Wqkv"}],  # its first block has no first norm
}  # fmt: skip


def found(model: nn.Module) -> list[list[NormFold | PairFold]]:
    return [folds(stage) for stage in walk(model, batches())]  # type: ignore[misc]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_folds_of_an_architecture_are_found_and_leave_its_outputs_alone(name: str) -> None:
    model = build(name)
    wanted, before = says(model), {n: t.clone() for n, t in model.state_dict().items()}
    by_block = found(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    for (prefix, _), block, expected in zip(blocks(model), by_block, EXPECTED[name], strict=True):
        short = {fold.source.removeprefix(f"{prefix}."): fold for fold in block}
        assert {source: set(readers.split()) for source, readers in expected.items()} == {
            source: {reader.removeprefix(f"{prefix}.") for reader in fold.readers} for source, fold in short.items()
        }
    random = torch.Generator().manual_seed(0)
    for fold in (fold for block in by_block for fold in block):
        fold.apply(torch.exp(torch.randn(fold.channels, generator=random)))
    assert not all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert distance(model, wanted) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_are_found_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    wanted, by_block = says(model), found(model)
    assert [len(block) for block in by_block] == [len(expected) for expected in EXPECTED[name]]
    for fold in (fold for block in by_block for fold in block):
        fold.apply(2.0 ** (torch.arange(fold.channels) % 5 - 2))  # exact, so all that changes is Gemma's 1 + weight
    assert distance(model, wanted) < 0.05


def test_heads_that_share_a_value_share_its_scale() -> None:
    (fold,) = (fold for fold in found(build("llama"))[0] if fold.source.endswith("v_proj"))
    assert fold.channels == 32
    columns = fold.spread(torch.arange(32.0)).view(4, 16)  # four heads of 16 read two values
    assert torch.equal(columns[0], columns[1]) and torch.equal(columns[2], columns[3])
    assert torch.equal(fold.pool(torch.tensor([1.0, 5, 3, 2]).repeat_interleave(16)).view(2, 16)[:, 0], Tensor([5, 3]))


class Squashed(nn.Module):
    """Named like a gated MLP, but between the linears is a tanh, which no scale passes."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.up_proj(x).tanh())
        return out


class Leaking(Squashed):
    """What the norm makes goes past the linears, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def test_names_and_shapes_alone_do_not_make_a_fold() -> None:
    for mlp, expected in (
        (Squashed, ["v_proj", "input_layernorm", "post_attention_layernorm"]),
        (Leaking, ["v_proj", "input_layernorm"]),
    ):
        model = build("llama")
        model.set_submodule("model.layers.0.mlp", mlp())
        assert [fold.source.rpartition(".")[2] for fold in found(model)[0]] == expected


def test_norms_are_known_by_what_they_compute() -> None:
    def of(name: str, norm: str) -> Form | None:
        return probe(build(name).get_submodule(norm))

    assert of("llama", "model.norm") == Form(0, False)
    assert of("gemma", "model.norm") == Form(1, False)
    assert of("phi", "model.final_layernorm") == Form(0, True)
    assert probe(nn.LayerNorm(8, bias=False)) == Form(0, True)
    assert probe(nn.RMSNorm(8)) == Form(0, False)
    assert probe(nn.PReLU(8)) is None
