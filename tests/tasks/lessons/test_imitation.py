"""The loss of imitation against its definition, written out token by token."""

import pytest
import torch

from tasks.lessons.imitation import imitate
from tests.tasks.lessons.toy import EXAMPLES, small_model


def test_the_loss_is_the_weighted_mean_over_answer_tokens_and_prompts_teach_nothing() -> None:
    model = small_model()
    found = []
    for e in EXAMPLES[:4]:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        found += [(-logp[i - 1, e.ids[i]].item(), e.weight) for i in range(e.prompt, len(e.ids))]
    expected = sum(nll * w for nll, w in found) / sum(w for _, w in found)
    assert imitate(model, EXAMPLES[:4]).mean.item() == pytest.approx(expected, rel=1e-4)
