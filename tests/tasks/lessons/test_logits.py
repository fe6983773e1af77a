"""The loss of a followed teacher against definitions written out by hand."""

from typing import get_args

import pytest
import torch

from tasks.lessons import Logits
from tasks.lessons.divergences import Kind, diverge, with_rest
from tasks.lessons.imitation import imitate
from tests.tasks.lessons.toy import EXAMPLES, small_model, teacher_of


def by_hand(logits: Logits, group: list, known: dict, model: torch.nn.Module) -> float:  # type: ignore[type-arg]
    total = weights = 0.0
    for e in group:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        for n, i in enumerate(range(e.prompt, len(e.ids))):
            ours, apart = logp[i - 1], 0.0
            if e.follow and e.row in known:
                values, ids = (part[n] for part in known[e.row])
                p, q = (with_rest(part[None]) for part in (values.float(), ours[ids.long()]))
                apart = diverge(logits.divergence, p, q, logits.beta, logits.temperature).item()
            total += e.weight * (-ours[e.ids[i]].item() + logits.weight * apart)
            weights += e.weight
    return total / weights


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_loss_is_the_weighted_mean_of_cross_entropy_and_divergence_where_followed(kind: Kind) -> None:
    group = [e._replace(follow=bool(e.row % 2)) for e in EXAMPLES[:4]]
    model, known = small_model(), teacher_of(group)
    lesson = Logits(weight=0.7, divergence=kind, beta=0.2, temperature=1.5)
    assert lesson.toward(known)(model, group, 0.5).mean.item() == pytest.approx(
        by_hand(lesson, group, known, model), rel=1e-4
    )


def test_rows_that_the_teacher_said_nothing_of_are_imitated_and_those_with_fewer_tokens_followed() -> None:
    group = EXAMPLES[:4]
    model, known = small_model(), teacher_of(group)
    del known[2]
    known[1] = (known[1][0][:, :3], known[1][1][:, :3])
    loss = Logits().toward(known)(model, group, 0.5)
    assert loss.mean.item() == pytest.approx(by_hand(Logits(), group, known, model), rel=1e-4)
    alone = Logits().toward(known)(model, [group[2]], 0.5)
    assert alone.mean.item() == pytest.approx(imitate(model, [group[2]]).mean.item(), rel=1e-6)


def test_a_position_behind_what_the_teacher_said_is_imitated() -> None:
    group = EXAMPLES[:1]
    model, known = small_model(), teacher_of(group)
    known[0][0][-1], known[0][1][-1] = -torch.inf, 0
    cut = {0: tuple(part[:-1] for part in known[0])}
    e = group[0]
    whole = Logits().toward(known)(model, group, 0.5).mean.item() * (len(e.ids) - e.prompt)
    before = [e._replace(ids=e.ids[:-1])]
    shorter = Logits().toward(cut)(model, before, 0.5).mean.item() * (len(e.ids) - e.prompt - 1)  # type: ignore[arg-type]
    last = imitate(model, group).mean.item() * (len(e.ids) - e.prompt) - imitate(model, before).mean.item() * (
        len(e.ids) - e.prompt - 1
    )
    assert whole == pytest.approx(shorter + last, rel=1e-4)
