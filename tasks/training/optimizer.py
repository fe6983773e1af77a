"""Muon for matrices and AdamW for vectors, as one optimizer.

Muon (Jordan et al. 2024) steps each matrix of an adapter by an orthogonal one, so that no direction is left behind; its
rates are in AdamW's measure (Liu et al. 2025, eq. 4). DoRA's magnitudes are vectors, which have no such directions:
AdamW steps them, at the same rate and without decay, which would pull them to zero and the layer with them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter


class MuonAdamW(torch.optim.Optimizer):
    """Both optimizers' groups and states in one; what is set on a group holds for its optimizer."""

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        every = list(parameters)
        super().__init__(every, {"lr": lr})
        matrices, vectors = ([p for p in every if (p.ndim == 2) is matrix] for matrix in (True, False))
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
        if vectors:
            self.parts.append(torch.optim.AdamW(vectors, lr=lr, weight_decay=0.0))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
