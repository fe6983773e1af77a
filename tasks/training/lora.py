"""A plain LoRA layer as one autograd function: y = x Wᵀ + s (x Aᵀ) Bᵀ with W frozen.

PEFT computes both terms, scales the second and adds them: four passes over the output, and as many over its gradient.
Here each product adds into the one before. On one CPU thread a step of the seedling takes a tenth less time.
"""

from typing import Any

import torch
from torch import Tensor


class LoRA(torch.autograd.Function):
    """x [..., n], W [m, n], bias [m] or None, A [r, n], B [m, r], s → y [..., m]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        y = torch.nn.functional.linear(rows, weight, bias).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:  # type: ignore[override]
        rows, low, weight, a, b = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        g_low = (g @ b).mul_(ctx.scale)
        to_x = (g @ weight).addmm_(g_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return to_x, None, None, g_low.T @ rows, (g.T @ low).mul_(ctx.scale), None


def fuse(model: Any) -> int:
    """Let the plain LoRA layers of a PEFT model in float32 on a CPU compute as above; returns how many they are.

    Others (DoRA, dropout, biases, several adapters) and merged or disabled ones go PEFT's way.
    """
    from peft.tuners.lora.layer import Linear

    fused = 0
    for layer in model.modules():
        if type(layer) is Linear and plain(layer):
            layer.forward = forward_of(layer)
            fused += 1
    return fused


def plain(layer: Any) -> bool:
    base = layer.base_layer
    (name,) = layer.lora_A if len(layer.lora_A) == 1 else ("",)
    return (
        type(base) is torch.nn.Linear
        and base.weight.dtype == torch.float32
        and base.weight.device.type == "cpu"
        and not base.weight.requires_grad
        and list(layer.active_adapters) == [name]
        and not layer.lora_variant
        and not layer.lora_bias.get(name)
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
    )


def forward_of(layer: Any) -> Any:
    theirs = layer.forward

    def forward(x: Tensor, *arguments: Any, **options: Any) -> Any:
        if layer.disable_adapters or layer.merged or arguments or options:
            return theirs(x, *arguments, **options)
        (name,) = layer.active_adapters
        a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        return LoRA.apply(  # type: ignore[no-untyped-call]
            x, layer.base_layer.weight, layer.base_layer.bias, a, b, scale
        )

    return forward
