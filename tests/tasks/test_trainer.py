"""The loss against definitions written out by hand, and a training run that is killed against one that is not."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.distill import DistillSpec
from tasks.trainer import Example, Trainer, answer_loss, plan, schedule, top_k_kl

EXAMPLES = [Example([5 + (7 * n + i) % 40 for i in range(6 + n % 5)], 3, 1.0 + n % 2, True, n) for n in range(24)]
SPEC = DistillSpec(epochs=3, batch_tokens=64, learning_rate=1e-2, checkpoint_steps=2, rank=4, alpha=8)


def small_model() -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))


def teacher_of(examples: list[Example]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for e in examples:
        logp = torch.randn(len(e.ids) - e.prompt, 64, generator=generator).log_softmax(-1)
        values, ids = logp.topk(8)
        found[e.row] = values.half(), ids.int()
    return found


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
    logits, answer = torch.randn(3, 10), torch.tensor([1, 2, 3])
    weight, follow = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    values, ids = torch.randn(3, 10).log_softmax(-1).topk(4)
    logp = logits.log_softmax(-1)
    by_hand = sum(
        w * (-logp[i, a] + 0.7 * f * top_k_kl(values[i : i + 1], logp[i : i + 1].gather(-1, ids[i : i + 1]))[0])
        for i, (a, w, f) in enumerate(zip(answer, weight, follow, strict=True))
    )
    loss = answer_loss(logits, answer, weight, (values, ids, follow), 0.7)
    assert loss.item() == pytest.approx(float(by_hand / weight.sum()), rel=1e-5)


def test_prompt_tokens_teach_nothing() -> None:
    model = small_model()
    trainer = Trainer(model, SPEC, Path(), {})
    loss = trainer.loss(EXAMPLES[:4], {}).item()
    changed = [e._replace(weight=e.weight, ids=[*e.ids]) for e in EXAMPLES[:4]]
    logits = []
    for e in changed:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        logits += [(-logp[i - 1, e.ids[i]].item(), e.weight) for i in range(e.prompt, len(e.ids))]
    expected = sum(nll * w for nll, w in logits) / sum(w for _, w in logits)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_every_example_is_seen_once_an_epoch_in_another_order_each_time() -> None:
    epochs = [[e.row for group in schedule(EXAMPLES, 64, 0, n) for e in group] for n in range(3)]
    assert all(sorted(rows) == list(range(24)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert epochs[0] == [e.row for group in schedule(EXAMPLES, 64, 0, 0) for e in group]


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    logits = teacher_of(EXAMPLES)

    class Killed(Exception):
        pass

    def kill_at(step: int) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            if done == step:
                raise Killed

        return progress

    def weights(work: Path, *kills: int) -> dict[str, torch.Tensor]:
        work.mkdir()
        for kill in (*kills, math.inf):
            trainer = Trainer(small_model(), SPEC, work, logits)
            try:
                trainer.run(EXAMPLES[:18], EXAMPLES[18:], kill_at(kill))
            except Killed:
                continue
        return {n: p.detach() for n, p in trainer.adapter.items()}

    unbroken, broken = weights(tmp_path / "a"), weights(tmp_path / "b", 3, 7)
    assert unbroken.keys() == broken.keys()
    assert all(torch.equal(unbroken[n], broken[n]) for n in unbroken)
    assert any(p.abs().max() > 0 for n, p in unbroken.items() if "lora_B" in n)


def test_training_learns_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(small_model(), replace(SPEC, epochs=30), tmp_path, {})
    before = trainer.validate(EXAMPLES[18:])
    trainer.run(EXAMPLES, EXAMPLES[18:], None)
    after = trainer.validate(EXAMPLES[18:])
    assert after < before - 0.3
    assert after == pytest.approx(min(h["validation_loss"] for h in trainer.history), abs=1e-4)


def test_max_steps_ends_training_in_the_middle_of_an_epoch() -> None:
    whole = [len(groups) for groups in plan(EXAMPLES, SPEC)]
    assert len(whole) == SPEC.epochs
    cut = plan(EXAMPLES, replace(SPEC, max_steps=whole[0] + 1))
    assert [len(groups) for groups in cut] == [whole[0], 1]
    assert cut[0] == plan(EXAMPLES, SPEC)[0]
