"""Muon against the iteration written out in float64, and against torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.muon import COEFFICIENTS, STEPS, Muon, orthogonal


def written_out(matrix: torch.Tensor) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(STEPS):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 6), st.integers(0, 9))
def test_small_matrices_stand_for_the_iteration_on_the_large_one(
    rows: int, columns: int, spread: float, n: int
) -> None:
    torch.manual_seed(n)
    scale = torch.logspace(0, -spread, columns)  # singular values over up to six decades
    matrices = torch.randn(3, rows, columns) * scale
    for found, matrix in zip(orthogonal(matrices), matrices, strict=True):
        torch.testing.assert_close(found.double(), written_out(matrix), rtol=0, atol=5e-3)


def test_nothing_comes_of_a_gradient_of_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 9)), torch.zeros(2, 4, 9))


def test_the_steps_are_those_of_torch_s_muon() -> None:
    torch.manual_seed(0)
    start = [torch.randn(8, 64), torch.randn(64, 8), torch.randn(8, 64)]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.01),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, first in zip(ours, theirs, start, strict=True):
        moved = (other - first).norm()
        assert (mine - other).norm() < 0.02 * moved, "more than bfloat16 explains"


def test_what_is_no_matrix_is_stepped_by_adam() -> None:
    torch.manual_seed(0)
    start = torch.randn(16)
    mine, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    ours, theirs = Muon([mine], lr=0.01), torch.optim.AdamW([other], lr=0.01, weight_decay=0.0)
    for _ in range(5):
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(mine, other)
    assert mine.detach() != pytest.approx(start)
