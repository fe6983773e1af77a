"""Four kinds of adapter: each begins where the base is, and what is saved fits the base as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.settings import SetupError
from tasks.lessons import DPO
from tasks.students import Causal
from tasks.students.adapters import fresh, save
from tests.tasks.lessons.toy import adapter_of, small_base

IDS = torch.arange(2, 40)[None]
KINDS = ["lora", "dora", "rslora", "pissa"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


@pytest.mark.parametrize("rank", [4, 40], ids=["narrow", "wider than its layers"])
@pytest.mark.parametrize("adapter", KINDS)
def test_the_base_with_the_saved_adapter_is_the_trained_model_and_the_merged_one(
    tmp_path: Path, adapter: Any, rank: int
) -> None:
    from peft import PeftModel

    spec = Causal(adapter=adapter, rank=rank, alpha=2 * rank)
    model = fresh(small_base(), spec, tmp_path)
    torch.testing.assert_close(logits(model), logits(small_base()), rtol=1e-4, atol=1e-5)
    for parameter in adapter_of(model).values():
        parameter += 0.02 * torch.randn_like(parameter)
    trained = logits(model)
    save(model, tmp_path / "adapter", spec, tmp_path, {})
    loaded = PeftModel.from_pretrained(small_base(), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), trained, rtol=1e-4, atol=1e-5)
    assert (trained - logits(small_base())).abs().max() > 0.01, "nothing was learned"


@pytest.mark.parametrize("tied", [False, True], ids=["a head of its own", "tied head"])
@pytest.mark.parametrize("adapter", [kind for kind in KINDS if kind != "pissa"])
def test_embeddings_of_the_named_tokens_are_part_of_the_adapter(tmp_path: Path, adapter: Any, tied: bool) -> None:
    from peft import PeftModel

    spec, tokens = Causal(adapter=adapter, rank=4, alpha=8, embeddings=True), [3, 5, 8]
    base = small_base(tied=tied)
    model = fresh(small_base(tied=tied), spec, tmp_path, tokens)
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-5)
    for name, parameter in adapter_of(model).items():
        parameter += (1.0 if "tokens" in name else 0.02) * torch.randn_like(parameter)
    trained = logits(model)
    save(model, tmp_path / "adapter", spec, tmp_path, {})
    loaded = PeftModel.from_pretrained(small_base(tied=tied), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-5)
    inputs, head = (
        (mine - theirs).abs().amax(1).nonzero()[:, 0].tolist()
        for mine, theirs in (
            (merged.get_input_embeddings().weight, base.get_input_embeddings().weight),
            (merged.get_output_embeddings().weight, base.get_output_embeddings().weight),
        )
    )
    assert (inputs, head) == (tokens, tokens if tied else [])


@pytest.mark.parametrize(
    ("other", "said"), [({"adapter": "pissa"}, "pissa .* adapter=lora"), ({"prefer": DPO()}, "embeddings or prefer")]
)
def test_what_embeddings_do_not_go_with_is_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Causal(embeddings=True, **other)


def test_pissa_takes_the_largest_part_out_of_the_base(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    whole = small_base().get_submodule(name).weight
    layer = fresh(small_base(), Causal(adapter="pissa", rank=4, alpha=8), tmp_path).get_base_model().get_submodule(name)
    largest = torch.linalg.svdvals(whole)[:4].square().sum()
    assert (whole - layer.base_layer.weight).square().sum() > 0.95 * largest, "a fast decomposition finds nearly all"


def test_scale_and_kind_are_what_the_spec_says(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    for adapter, scale in (("lora", 2.0), ("rslora", 4.0), ("dora", 2.0), ("pissa", 2.0)):
        model = fresh(small_base(), Causal(adapter=adapter, rank=4, alpha=8), tmp_path)
        assert model.get_base_model().get_submodule(name).scaling["default"] == scale
        assert any("magnitude" in key for key in adapter_of(model)) is (adapter == "dora")


@pytest.mark.parametrize("adapter", KINDS)
def test_a_fresh_adapter_depends_on_the_seed_alone(tmp_path: Path, adapter: Any) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed() % 1000)
        return adapter_of(fresh(small_base(), Causal(adapter=adapter, rank=4, alpha=8, seed=seed), tmp_path))

    one, again, other = made(0), made(0), made(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one) or adapter == "pissa"


def test_adapters_are_on_the_layers_that_are_named_and_never_on_the_head(tmp_path: Path) -> None:
    def on(*targets: str) -> set[str]:
        model = fresh(small_base(), Causal(rank=4, alpha=8, targets=targets), tmp_path)
        return {name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapter_of(model)}

    assert on("q_proj", "up_proj") == {"q_proj", "up_proj"}
    assert on() == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for wrong in ("lm_head", "c_attn"):
        with pytest.raises(SetupError, match=rf"distill\.targets {wrong} .*'q_proj'"):
            on("q_proj", wrong)
