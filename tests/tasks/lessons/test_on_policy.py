"""The student's own answers: how they are written, what the teacher makes of them, and when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from infra.settings import SetupError, settings
from tasks.lessons import Logits, OnPolicy
from tasks.lessons.divergences import diverge
from tasks.lessons.lesson import Desk, Teach
from tasks.lessons.on_policy import answer
from tasks.teachers import LocalTeacher
from tasks.training.examples import Example
from tests.tasks.lessons.toy import EXAMPLES, TOKENIZER, small_model, small_teacher, teacher_of

GROUP = [e._replace(ids=e.ids[: 3 + e.row % 3] + e.ids[3:], prompt=3 + e.row % 3) for e in EXAMPLES[:6]]
PROMPTS = {e.row: [9, 8, *e.ids[: e.prompt]] for e in GROUP}  # the teacher reads more than the student


def lesson(spec: OnPolicy, prompts: dict[int, list[int]] = PROMPTS) -> tuple[Teach, Teach]:
    """It, and the one that it stands beside."""
    logged = spec.logits.toward(teacher_of(GROUP))
    desk = Desk(None, [], GROUP, TOKENIZER, None, 3, None)  # type: ignore[arg-type]
    return spec.beside(logged, small_teacher(), prompts, desk), logged


def sharp_model() -> Any:
    """Its adapter is not zero, and it is sure of what it says."""
    model = small_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(20 if "lm_head" in name else 1)
    return model


def test_it_answers_as_it_would_alone_whatever_stands_beside_it() -> None:
    model = sharp_model().eval()
    written = answer(model, TOKENIZER, GROUP, 1e-4, "a")  # next to no temperature: the likeliest token
    for e, said in zip(GROUP, written, strict=True):
        ids = list(e.ids[: e.prompt])
        while len(ids) - e.prompt < 2 * (len(e.ids) - e.prompt) and ids[-1] != 1:
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert said == ids[e.prompt :]


@pytest.mark.parametrize("parts", [(GROUP[:1], GROUP[1:]), (GROUP[::2], GROUP[1::2]), (GROUP[::-1],)])
def test_what_is_drawn_for_a_request_does_not_depend_on_what_is_answered_beside_it(parts: list[list[Example]]) -> None:
    model = small_model()
    whole = dict(zip([e.row for e in GROUP], answer(model, TOKENIZER, GROUP, 1.0, "a"), strict=True))
    for part in parts:
        assert answer(model, TOKENIZER, part, 1.0, "a") == [whole[e.row] for e in part]


def test_tokens_are_drawn_as_often_as_the_student_thinks_them_likely() -> None:
    model = small_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8 if "lm_head" in name else 1)
        probability = (model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.7).softmax(-1)
    many = [Example([5, 6, 7, 8], 3, 1.0, True, row) for row in range(4000)]
    first = torch.tensor([said[0] for said in answer(model, TOKENIZER, many, 0.7, "a")])
    count, expected = torch.bincount(first, minlength=64), 4000 * probability
    often = expected > 5
    assert often.sum() > 10 and expected.max() > 2 * expected.median()
    surplus = ((count - expected)[often] ** 2 / expected[often]).sum()
    assert surplus < chi2.ppf(1 - 1e-6, int(often.sum()))


def test_the_same_moment_says_the_same_another_something_else_and_the_world_s_chance_is_left_alone() -> None:
    model = small_model()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (answer(model, TOKENIZER, GROUP, 1.0, moment) for moment in ("a", "a", "b"))
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)
    assert model.training


def test_a_base_that_is_sharded_is_refused(home: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TORCHRUN", "--nproc-per-node 2")
    monkeypatch.setenv("FLYWHEEL_SHARD", "true")
    settings.cache_clear()
    desk = Desk(None, [], GROUP, TOKENIZER, LocalTeacher(str(bare)), 3, None)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=r"FLYWHEEL_SHARD.*learn from logits"):
        OnPolicy().prepare(desk)


@pytest.mark.parametrize("spec", [OnPolicy(rate=0.0, share=1.0), OnPolicy(rate=1.0, share=0.0)])
def test_without_rate_or_share_it_is_exactly_logits(spec: OnPolicy) -> None:
    ours, logged = lesson(spec)
    model = small_model()
    for step in range(1, 11):
        assert torch.equal(ours(model, GROUP, step / 10).total, logged(model, GROUP, step / 10).total)


def test_the_student_answers_in_the_last_part_alone_and_there_as_often_as_asked() -> None:
    ours, logged = lesson(OnPolicy(rate=0.5, share=0.25))
    model = small_model()
    group = GROUP[:2]
    own = [ours(model, group, n / 80).total != logged(model, group, n / 80).total for n in range(1, 81)]
    assert not any(own[:60])
    assert 4 <= sum(own[60:]) <= 16


def test_the_loss_is_the_divergence_on_what_the_student_wrote_and_logits_where_the_teacher_was_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [e._replace(follow=e.row != 1) for e in GROUP[:4]]
    prompts = {row: prompt for row, prompt in PROMPTS.items() if row != 2}  # one request that the teacher cannot read
    spec = OnPolicy(rate=1.0, share=1.0, divergence="jsd", beta=0.3, logits=Logits(weight=0.7))
    ours, logged = lesson(spec, prompts)
    model, judge = small_model(), small_teacher()
    written: list[list[int]] = []

    def noted(*given: Any) -> list[list[int]]:
        written.extend(answer(*given))
        return written

    monkeypatch.setattr("tasks.lessons.on_policy.answer", noted)
    loss = ours(model, group, 0.5).mean.item()
    total = weights = 0.0
    for e, said in zip([group[0], group[3]], written, strict=True):
        with torch.no_grad():
            mine = model(input_ids=torch.tensor([e.ids[: e.prompt] + said])).logits[0, e.prompt - 1 : -1]
            its = judge(input_ids=torch.tensor([prompts[e.row] + said])).logits[0, len(prompts[e.row]) - 1 : -1, :64]
        total += e.weight * diverge("jsd", its, mine, 0.3).sum().item()
        weights += e.weight * len(said)
    others = [group[1], group[2]]
    theirs = sum(e.weight * (len(e.ids) - e.prompt) for e in others)
    total += theirs * logged(model, others, 0.5).mean.item()
    assert loss == pytest.approx(total / (weights + theirs), rel=1e-4)


def test_on_its_own_answers_the_student_comes_to_speak_as_the_teacher_does() -> None:
    ours, _ = lesson(OnPolicy(rate=1.0, share=1.0, divergence="reverse_kl"))
    model = small_model()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(1, 21):
        loss = ours(model, GROUP, step / 20)
        loss.mean.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.mean.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
