"""Packed sequences against each alone, for attentions of different kinds, and what cannot be packed."""

from typing import Any

import pytest
import torch

from tasks.lessons.imitation import answer_logits, imitate
from tasks.training.examples import Example, collate
from tasks.training.forward import PACKED, pack, packed_logits
from tests.tasks.lessons.toy import EXAMPLES, small_model

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def model_of(kind: str, **more: Any) -> Any:
    import transformers

    torch.manual_seed(1)
    config_of = transformers.Gemma3TextConfig if kind == "Gemma3" else getattr(transformers, f"{kind}Config")
    config = config_of(**{**SHAPE, "initializer_range": 0.1 if kind == "Gemma3" else 0.5, **more})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(2, 64, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {}),
        ("GPTNeoX", {}),
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 8}),
        ("Gemma3", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_each_packed_sequence_has_the_logits_it_has_alone(kind: str, more: dict[str, Any]) -> None:
    model = model_of(kind, **more)
    parts = sequences(5, 1, 23, 12)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in parts])
        assert pack(model)
        row = packed_logits(model, torch.cat(parts), [5, 1, 23, 12], torch.arange(41))
        again = model(input_ids=parts[2][None], use_cache=False).logits[0]
    torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
    torch.testing.assert_close(again, alone[6:29])  # what is not packed goes on as before


def test_a_packed_model_generates_as_before() -> None:
    model = model_of("Llama")
    ids = torch.stack(sequences(6, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    before = model.generate(ids, **options)
    assert pack(model)
    assert torch.equal(model.generate(ids, **options), before)


@pytest.mark.parametrize("kind", ["Bloom", "Mamba"])
def test_what_cannot_be_packed_lies_side_by_side_with_the_same_loss(kind: str) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "n_layer": 2, "n_head": 4, "state_size": 4}
    model = model_of(kind, **(sizes if kind == "Mamba" else {**sizes, "num_attention_heads": 4}))
    assert not pack(model)
    assert model.config._attn_implementation != PACKED
    model.get_base_model = lambda: model
    alone = [imitate(model, [e]) for e in EXAMPLES[:5]]
    together = imitate(model, EXAMPLES[:5])
    assert together.total.item() == pytest.approx(sum(loss.total.item() for loss in alone), rel=1e-5)


def test_the_gradient_is_the_same_packed_and_side_by_side() -> None:
    found = []
    for packed in (False, True):
        model = small_model()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
        assert not packed or pack(model.get_base_model())
        imitate(model, EXAMPLES[:6]).mean.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for side, row in zip(*found, strict=True):
        torch.testing.assert_close(side, row, rtol=1e-4, atol=1e-6)


def test_logits_come_in_the_order_of_the_batch() -> None:
    group = [Example([3, 9, 4, 8, 1], 3, 1.0, True, 0), Example([7, 5, 1], 2, 1.0, True, 1)]
    model = small_model()
    side = answer_logits(model, collate(group))
    pack(model.get_base_model())
    torch.testing.assert_close(answer_logits(model, collate(group)), side, rtol=1e-4, atol=1e-5)
    assert side.shape == (3, 64)
