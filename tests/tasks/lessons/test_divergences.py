"""Divergences against torch, TRL and definitions written out; what a truncated teacher can and cannot say."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.lessons.divergences import Kind, at_tokens, diverge, with_rest

KINDS = get_args(Kind)


def two(n: int = 50, m: int = 24, seed: int = 0, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [n, m] of a teacher and a student."""
    torch.manual_seed(seed)
    first, second = ((sharp * torch.randn(n, m, dtype=torch.float64)).log_softmax(-1) for _ in range(2))
    return first, second


def test_both_kl_are_torch_s() -> None:
    p, q = two()
    forward = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    reverse = torch.nn.functional.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(diverge("forward_kl", p, q), forward)
    torch.testing.assert_close(diverge("reverse_kl", p, q), reverse)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_jsd_is_its_definition_written_out(beta: float) -> None:
    p, q = two(3, 5)
    for n, found in enumerate(diverge("jsd", p, q, beta).tolist()):
        a, b = p[n].exp().tolist(), q[n].exp().tolist()
        m = [beta * x + (1 - beta) * y for x, y in zip(a, b, strict=True)]
        of_p = sum(x * math.log(x / z) for x, z in zip(a, m, strict=True))
        of_q = sum(y * math.log(y / z) for y, z in zip(b, m, strict=True))
        assert found == pytest.approx(beta * of_p + (1 - beta) * of_q)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_all_three_are_trl_s_generalized_jsd(temperature: float) -> None:
    theirs = pytest.importorskip("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    teacher, student = (torch.randn(4, 7, 20, dtype=torch.float64) for _ in range(2))
    for kind, ours, beta in [("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0), ("jsd", 0.3, 0.3), ("jsd", 0.5, 0.5)]:
        found = diverge(kind, teacher.flatten(0, 1), student.flatten(0, 1), ours, temperature).mean() / temperature**2
        expected = theirs(student, teacher, beta=beta, temperature=temperature, reduction="none").sum(-1).mean()
        torch.testing.assert_close(found, expected)


def test_the_jsd_lies_between_the_two_kl() -> None:
    p, q = two()
    small = 1e-6
    torch.testing.assert_close(diverge("jsd", p, q, small) / small, diverge("forward_kl", p, q), rtol=1e-3, atol=1e-4)
    near = diverge("jsd", p, q, 1 - small) / small
    torch.testing.assert_close(near, diverge("reverse_kl", p, q), rtol=1e-3, atol=1e-4)


@given(st.integers(0, 2**31), st.integers(1, 23), st.floats(0.1, 6), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_no_truncated_divergence_exceeds_the_whole_and_each_is_zero_only_at_the_teacher(
    seed: int, k: int, sharp: float, beta: float
) -> None:
    p, q = two(8, 24, seed, sharp)
    values, tokens = p.topk(k)
    teacher, student = at_tokens(q, values, tokens)
    for kind in KINDS:
        found = diverge(kind, teacher, student, beta)
        assert (found <= diverge(kind, p, q, beta) + 1e-5).all()  # the data-processing inequality
        assert (found >= -1e-9).all()
        for temperature in (0.5, 1.0, 4.0):
            assert diverge(kind, *at_tokens(p, values, tokens), beta, temperature).abs().max() < 1e-9
        if k > 1:
            assert (found > 0).all()


def test_what_truncation_leaves_out_is_the_divergence_within_the_rest() -> None:
    p, q = two()
    values, tokens = p.topk(6)
    within_p, within_q = (
        logp.scatter(-1, tokens, -math.inf).log_softmax(-1).nan_to_num(neginf=-1e4) for logp in (p, q)
    )
    teacher, student = at_tokens(q, values, tokens)
    forward = teacher[:, -1].exp() * diverge("forward_kl", within_p, within_q)
    reverse = student[:, -1].exp() * diverge("reverse_kl", within_p, within_q)
    for kind, gap in (("forward_kl", forward), ("reverse_kl", reverse)):
        torch.testing.assert_close(diverge(kind, p, q) - diverge(kind, teacher, student), gap)


def test_the_rest_at_a_temperature_is_within_the_bounds_that_are_claimed() -> None:
    p, _ = two(sharp=3.0)
    k, temperature = 6, 2.0
    values, _ = p.topk(k)
    of_many = (p.exp() ** (1 / temperature)).sum(-1) - (values.exp() ** (1 / temperature)).sum(-1)
    as_one = with_rest(values)[:, -1].exp() ** (1 / temperature)
    assert (as_one <= of_many + 1e-12).all()
    assert (of_many <= (p.shape[-1] - k) ** (1 - 1 / temperature) * as_one + 1e-12).all()


def test_tokens_that_are_missing_or_out_of_the_student_s_reach_are_part_of_the_rest() -> None:
    p, q = two(6, 24)
    values, tokens = p.topk(5)
    values[0, 3:], tokens[0, 3:] = -math.inf, 0
    tokens[1, 4] = 99
    teacher, student = at_tokens(q, values, tokens)
    for n, k in ((0, 3), (1, 4), (2, 5)):
        alone = [part[0] for part in at_tokens(q[n : n + 1], values[n : n + 1, :k], tokens[n : n + 1, :k])]
        for kind in KINDS:
            found = diverge(kind, teacher[n : n + 1], student[n : n + 1])
            torch.testing.assert_close(found, diverge(kind, alone[0][None], alone[1][None]))


def test_nothing_is_known_and_nothing_is_learned() -> None:
    q = torch.randn(2, 9, requires_grad=True)
    values, tokens = torch.full((2, 4), -math.inf), torch.zeros(2, 4, dtype=torch.long)
    for kind in KINDS:
        apart = diverge(kind, *at_tokens(q.log_softmax(-1), values, tokens), 0.5, 2.0)
        assert apart.abs().max() < 1e-6
        (gradient,) = torch.autograd.grad(apart.sum(), q)
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_certain_has_gradients_that_are_finite(kind: Kind) -> None:
    student = torch.tensor([[50.0, 0.0, 0.0, 0.0], [0.0, 50.0, 0.0, 0.0]], requires_grad=True)
    values, tokens = torch.tensor([[0.0, -60.0]] * 2), torch.tensor([[0, 1]] * 2)
    apart = diverge(kind, *at_tokens(student.log_softmax(-1), values, tokens))
    (gradient,) = torch.autograd.grad(apart.sum(), student)
    assert apart.isfinite().all() and gradient.isfinite().all()
    assert apart[0].item() == pytest.approx(0, abs=1e-4) and apart[1] > 0.5
