"""The loss of a followed teacher against definitions written out by hand."""

import pytest
import torch

from tasks.lessons import Logits
from tasks.lessons.logits import top_k_kl
from tests.tasks.lessons.toy import EXAMPLES, small_model, teacher_of


def test_kl_over_all_tokens_is_the_textbook_kl() -> None:
    teacher, student = (torch.randn(5, 16, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values, ids = teacher.topk(16)
    expected = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(top_k_kl(values, student.gather(-1, ids)), expected, rtol=1e-4, atol=1e-5)


def test_kl_over_top_k_never_exceeds_the_whole_and_is_zero_at_the_teacher() -> None:
    teacher, student = (torch.randn(200, 64, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    whole = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    values, ids = teacher.topk(8)
    assert (top_k_kl(values, student.gather(-1, ids)) <= whole + 1e-9).all()  # the data-processing inequality
    assert top_k_kl(values, values).abs().max() < 1e-9


def test_the_loss_is_the_weighted_mean_of_cross_entropy_and_kl_where_followed() -> None:
    group = [e._replace(follow=bool(e.row % 2)) for e in EXAMPLES[:4]]
    model, known = small_model(), teacher_of(group)
    total = weights = 0.0
    for e in group:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        values, ids = known[e.row]
        for n, i in enumerate(range(e.prompt, len(e.ids))):
            ours = logp[i - 1]
            kl = top_k_kl(values[n : n + 1].float(), ours[ids[n].long()][None])[0].item()
            total += e.weight * (-ours[e.ids[i]].item() + 0.7 * e.follow * kl)
            weights += e.weight
    loss = Logits(weight=0.7).toward(known)(model, group, 0.5)
    assert loss.mean.item() == pytest.approx(total / weights, rel=1e-4)
