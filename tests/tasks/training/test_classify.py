"""A classifier's loss by hand, a killed run against an unbroken one, and a temperature that is known."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.nn import functional

from infra.engines.labels import Reader
from tasks.students import Classifier
from tasks.training.classify import ClassifierTrainer, Text, temperature
from tasks.training.encoder import LENGTH, Classifying, read, write

SPEC = Classifier(epochs=3, batch_tokens=64, learning_rate=1e-2, checkpoint_steps=2)
LABELS = 3


def texts(number: int, seed: int = 0) -> list[Text]:
    """Each label has ids of its own, among others."""
    rng = Random(seed)
    made = []
    for n in range(number):
        ids = [rng.randrange(10 * (n % LABELS), 10 * (n % LABELS) + 10) for _ in range(3 + n % 4)]
        made.append(Text([30, *ids], n % LABELS, 1.0 + n % 2))
    return made


def small_encoder() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, initializer_range=0.2,
    ))  # fmt: skip


@pytest.fixture
def reader(labelled: Any) -> Reader:
    return Reader(labelled(), 16)


def trainer_of(work: Path, reader: Reader, spec: Classifier = SPEC) -> ClassifierTrainer:
    work.mkdir(exist_ok=True)
    torch.manual_seed(spec.seed)
    return ClassifierTrainer(Classifying(small_encoder(), LABELS), spec, work, reader)


def test_the_head_reads_the_mean_s_direction_over_what_is_no_padding(reader: Reader) -> None:
    model = Classifying(small_encoder(), LABELS).eval()
    short, long = torch.tensor([[30, 1, 2]]), torch.tensor([[30, 1, 2, 0, 0]])
    hidden = model.encoder(input_ids=short, attention_mask=torch.ones_like(short)).last_hidden_state
    expected = model.head(LENGTH * hidden[0].mean(0) / hidden[0].mean(0).norm())
    logits = model(input_ids=long, attention_mask=(torch.tensor([[1, 1, 1, 0, 0]])))["logits"]
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_weighted_mean_of_smoothed_cross_entropy(tmp_path: Path, reader: Reader) -> None:
    trainer = trainer_of(tmp_path, reader)
    trainer.model.eval()
    group = texts(6)
    s, by_hand = SPEC.label_smoothing, 0.0
    for text in group:
        logits = trainer.model(input_ids=torch.tensor([text.ids]), attention_mask=torch.ones(1, len(text.ids)).long())
        logp = logits["logits"][0].log_softmax(-1)
        by_hand += text.weight * (-(1 - s) * logp[text.label] - s * logp.mean()).item()
    assert trainer.loss(group).item() == pytest.approx(by_hand / sum(t.weight for t in group), rel=1e-4)


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, reader: Reader) -> None:
    torch.set_num_threads(1)

    class Killed(Exception):
        pass

    def kill_at(step: float) -> Any:
        def progress(done: int, total: int, what: str) -> None:
            if done == step:
                raise Killed

        return progress

    def weights(work: Path, *kills: int) -> dict[str, torch.Tensor]:
        for kill in (*kills, math.inf):
            trainer = trainer_of(work, reader)
            try:
                trainer.run(texts(40), texts(12, seed=1), kill_at(kill))
            except Killed:
                continue
        return dict(trainer.model.named_parameters())

    before = dict(trainer_of(tmp_path / "c", reader).model.named_parameters())
    unbroken, broken = weights(tmp_path / "a"), weights(tmp_path / "b", 3, 7)
    assert all(torch.equal(unbroken[n], broken[n]) for n in unbroken)
    changed = {name for name in before if not torch.equal(before[name], unbroken[name])}
    frozen = {name for name in before if name.startswith("encoder.embeddings.word_embeddings")}
    assert changed == set(before) - frozen


def test_training_learns_and_is_judged_as_it_will_be_calibrated(tmp_path: Path, reader: Reader) -> None:
    """Smoothed labels make it less sure than it is right, which the temperature undoes."""
    trainer = trainer_of(tmp_path, reader, replace(SPEC, epochs=6, label_smoothing=0.5))
    validation = texts(60, seed=1)
    trainer.run(texts(120), validation, None)
    logits, labels = trainer.logits(validation), torch.tensor([text.label for text in validation])
    assert (logits.argmax(-1) == labels).float().mean() > 0.9
    assert [epoch["epoch"] for epoch in trainer.history] == list(range(7)), "0 is what the head began as"
    last = trainer.history[-1]["validation_loss"]
    assert functional.cross_entropy(logits, labels).item() > last + 0.1
    trainer.calibrate(validation)
    assert functional.cross_entropy(trainer.logits(validation), labels).item() == pytest.approx(last, abs=1e-3)


def test_what_was_written_is_what_is_read(tmp_path: Path, reader: Reader) -> None:
    trainer = trainer_of(tmp_path / "work", reader)
    write(trainer.model, tmp_path)
    ids = torch.tensor([[30, 1, 2, 3]])
    ours, theirs = (model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)) for model in
                    (trainer.model, read(tmp_path)))  # fmt: skip
    assert torch.equal(ours["logits"], theirs["logits"])


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(scale: float) -> None:
    """Labels are drawn from the softmax of the logits as they were, so as such they are calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    assert temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)


def test_too_few_rows_tell_no_temperature_and_the_head_takes_the_one_that_is_told(
    tmp_path: Path, reader: Reader
) -> None:
    trainer = trainer_of(tmp_path, reader)
    assert trainer.calibrate([]) == trainer.calibrate(texts(20)) == 1.0
    before = trainer.logits(texts(60))
    found = trainer.calibrate(texts(60))
    assert found != 1.0
    torch.testing.assert_close(trainer.logits(texts(60)), before / found)
