"""Hard cases: those that greedy decoding gets wrong, and how often they are drawn."""

from collections import Counter
from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.lessons.imitation import imitate
from tasks.training.examples import schedule
from tasks.training.hard import redrawn, systematic, unlearned
from tests.tasks.lessons.toy import EXAMPLES, small_model


def test_hard_is_what_greedy_decoding_gets_wrong() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        imitate(model, EXAMPLES[:12]).mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    wrong = []
    for e in EXAMPLES:
        prompt = torch.tensor([e.ids[: e.prompt]])
        said = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None,
            pad_token_id=0, max_new_tokens=len(e.ids) - e.prompt,
        )  # fmt: skip
        wrong += [e.row] * (said[0].tolist() != e.ids)
    assert 0 < len(wrong) < len(EXAMPLES)
    assert unlearned(model, EXAMPLES, 64, False) == wrong


@given(st.lists(st.floats(1, 20), min_size=1, max_size=24), st.integers(0, 10**6))
def test_each_is_drawn_its_expected_number_of_times_give_or_take_one_and_as_many_in_all(
    weights: list[float], seed: int
) -> None:
    examples = EXAMPLES[: len(weights)]
    drawn = Counter(e.row for e in systematic(examples, weights, Random(seed)))
    assert drawn.total() == len(examples)
    for e, weight in zip(examples, weights, strict=True):
        assert abs(drawn[e.row] - weight * len(examples) / sum(weights)) < 1 + 1e-6


def test_an_epoch_keeps_its_steps_and_draws_the_hard_more_often() -> None:
    hard = [0, 5, 10]  # the shortest
    n = len(schedule(EXAMPLES, 64, 0, 1, False))
    drawn: Counter[int] = Counter()
    for seed in range(20):
        groups = redrawn(EXAMPLES, hard, 4.0, 64, seed, 1, n, False)
        assert len(groups) == n
        assert all(len(group) * max(len(e.ids) for e in group) <= 64 for group in groups)
        drawn.update(e.row for group in groups for e in group)
    often, seldom = (sum(drawn[r] for r in rows) / len(rows) for rows in (hard, range(11, 24)))
    assert 3 < often / seldom < 5
    assert redrawn(EXAMPLES, hard, 4.0, 64, 0, 1, n, False) == redrawn(EXAMPLES, hard, 4.0, 64, 0, 1, n, False)
    assert redrawn(EXAMPLES, hard, 4.0, 64, 0, 1, n, False) != redrawn(EXAMPLES, hard, 4.0, 64, 0, 2, n, False)
