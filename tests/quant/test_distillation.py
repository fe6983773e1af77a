"""What a method learns from: the unquantized model's word on batches that are never twice the same."""

import torch
from torch import nn

from quant import quantize
from quant.calibrate import Batch
from quant.distillation import NOISE, course, measure
from quant.methods import RTN


def test_a_lesson_is_a_disturbed_batch_and_what_the_unquantized_model_says_to_it(
    original: nn.Module, model: nn.Module, batches: list[Batch]
) -> None:
    taught, random = course(model, batches), torch.Generator().manual_seed(0)
    quantize(model, RTN(bits=2))  # the teacher is none the worse for it
    moved = []
    for _ in range(40):
        batch, where, wanted = taught.draw(0, random, disturbed=True)
        before, ids, mask = taught.batches[0]["input_ids"], batch["input_ids"], batch["attention_mask"].bool()
        assert torch.equal(ids[~mask], before[~mask])
        assert set(ids[mask].tolist()) <= set(before[mask].tolist())
        moved.append((ids != before)[mask].float().mean())
        with torch.no_grad():
            said = original(input_ids=ids, attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        torch.testing.assert_close(wanted, said[where], rtol=1e-4, atol=1e-4)
    assert 0.5 * NOISE < sum(moved) / len(moved) < 1.1 * NOISE  # now and then a token is drawn in its own place
    assert len(set(map(float, moved))) > 20
    assert taught.draw(0, random, disturbed=False).batch is taught.batches[0]


def test_the_exam_is_on_other_sequences_and_undisturbed(model: nn.Module, batches: list[Batch]) -> None:
    taught = course(model, batches)
    held = [tuple(row) for lesson in taught.exam for row in lesson.batch["input_ids"].tolist()]
    learned = [tuple(row) for batch in taught.batches for row in batch["input_ids"].tolist()]
    given = [tuple(row) for batch in batches for row in batch["input_ids"].tolist()]
    assert held and sorted(held + learned) == sorted(given) and not set(held) & set(learned)
    assert abs(measure(model, taught.exam)) < 1e-6
