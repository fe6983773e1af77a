"""Muon (Jordan et al. 2024), for the many small matrices of a LoRA at once.

A step is the nearest orthogonal matrix to the gradient's momentum, which five Newton-Schulz iterations approximate:

    X ← X / ‖X‖,   then five times   X ← a X + b (XXᵀ)X + c (XXᵀ)²X

Every iterate is a polynomial in G = XXᵀ times the first X. A LoRA's matrix is r × n with r far below n, so the
iterations are done on the r × r matrices G and Q, and X is touched twice:

    U = a I + b G + c G²,   Q ← U Q,   G ← U G U;   at last Q X

Matrices of one shape are one batch, in float32. On one CPU thread the seedling's step takes a fifth of the time of
`torch.optim.Muon`, which does them one by one in bfloat16: that was a quarter of training. Rates are in AdamW's
measure (Liu et al. 2025, eq. 4). What is no matrix (DoRA's magnitudes) is stepped by Adam, and does not decay: that
would pull it to zero, and the layer with it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Matrices as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, the rest as Adam; each needs a gradient."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                names = ("momentum",) if parameter.ndim == 2 else ("mean", "square", "steps")
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in names}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                if len(shape) != 2:
                    self.adam(parameters, group["lr"])
                    continue
                moments = []
                for parameter in parameters:
                    gradient = parameter.grad
                    assert gradient is not None
                    kept = self.state[parameter]["momentum"].lerp_(gradient, 1 - group["momentum"])
                    moments.append(gradient.lerp(kept, group["momentum"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, update in zip(parameters, orthogonal(torch.stack(moments)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def adam(self, parameters: list[Tensor], rate: float) -> None:
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            state["steps"] += 1
            state["mean"].lerp_(gradient, 0.1)
            state["square"].lerp_(gradient.square(), 0.001)
            mean, square = state["mean"] / (1 - 0.9 ** state["steps"]), state["square"] / (1 - 0.999 ** state["steps"])
            parameter.sub_(rate * mean / (square.sqrt() + 1e-8))


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix to each of float32 [k, m, n]; singular values come out near 1."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    one = torch.eye(gram.shape[-1], device=x.device, dtype=x.dtype)
    out = one.expand_as(gram)
    for step in range(STEPS):
        update = torch.baddbmm(a * one + b * gram, gram, gram, alpha=c)
        out = update @ out
        if step + 1 < STEPS:
            gram = update @ gram @ update
    result: Tensor = out @ x
    return result if wide else result.mT
