"""A fused LoRA layer against PEFT's own, and which layers are left to PEFT."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tasks.training.lora import LoRA, fuse


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5, bias=False))
    model = get_peft_model(net, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_the_gradients_are_right() -> None:
    torch.manual_seed(0)
    x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 6), (2, 6), (5, 2)))
    weight, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, a, b: LoRA.apply(x, weight, bias, a, b, 1.5), (x, a, b))


def test_a_fused_model_computes_and_learns_as_peft_s() -> None:
    x = torch.randn(4, 7, 6)
    found = []
    for fused in (False, True):
        model = network()
        assert not fused or fuse(model) == 2
        out = model(x)
        out.square().sum().backward()
        with model.disable_adapter():
            bare = model(x)
        found.append([out, bare, *(p.grad for p in model.parameters() if p.requires_grad)])
        found[-1].append(model.merge_and_unload()(x))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_what_is_not_plain_is_left_to_peft(options: dict[str, Any]) -> None:
    if "lora_bias" in options:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8))
        assert fuse(get_peft_model(net, LoraConfig(r=3, target_modules=["0"], **options))) == 0
    else:
        assert fuse(network(**options)) == 0
