"""One optimizer for matrices and vectors, against torch's own two."""

from collections.abc import Callable

import torch
from torch.nn import Parameter

from tasks.training.optimizer import MuonAdamW


def test_matrices_go_as_by_muon_and_vectors_as_by_adamw() -> None:
    def walk(make: Callable[[list[Parameter]], list[torch.optim.Optimizer]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        parameters = [Parameter(torch.randn(4, 6)), Parameter(torch.randn(5)), Parameter(torch.randn(3, 2))]
        optimizers = make(parameters)
        for step in range(5):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 / (step + 1)
            sum((p**2).sum() for p in parameters).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return [p.detach() for p in parameters]

    ours = walk(lambda parameters: [MuonAdamW(parameters, 0.1)])
    theirs = walk(
        lambda p: [
            torch.optim.Muon([p[0], p[2]], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p[1]], lr=0.1, weight_decay=0.0),
        ]
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
