"""The order of batches: every example once an epoch, full batches, another order each time, an end if one is asked."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.examples import Example, calibration, collate, pack, plan, schedule, share
from tests.tasks.lessons.toy import EXAMPLES


def of_lengths(lengths: list[int]) -> list[Example]:
    return [Example([5] * length, 1, 1.0, True, row) for row, length in enumerate(lengths)]


def tokens(group: list[Example]) -> int:
    return sum(len(e.ids) for e in group)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 120), min_size=1, max_size=300), st.booleans(), st.integers(0, 3))
def test_every_example_is_seen_once_an_epoch_and_no_batch_is_too_large(
    lengths: list[int], packed: bool, epoch: int
) -> None:
    groups = schedule(of_lengths(lengths), 64, 0, epoch, packed)
    assert sorted(e.row for group in groups for e in group) == list(range(len(lengths)))
    for group in groups:
        size = tokens(group) if packed else len(group) * max(len(e.ids) for e in group)
        assert size <= 64 or len(group) == 1
    assert groups == schedule(of_lengths(lengths), 64, 0, epoch, packed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 64), min_size=1, max_size=60))
def test_packing_is_as_good_as_best_fit_decreasing_is(lengths: list[int]) -> None:
    groups = pack(of_lengths(lengths), 64)
    rooms: list[int] = []  # the same, by looking at every group each time
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(64 - length)
    assert sorted(64 - tokens(group) for group in groups) == sorted(rooms)


def test_batches_are_full_and_the_epochs_differ() -> None:
    examples = of_lengths([20 + 7 * n % 90 for n in range(4000)])
    epochs = [schedule(examples, 384, 0, epoch) for epoch in range(3)]
    for groups in epochs:
        assert tokens(examples) / (384 * len(groups)) > 0.99
    assert len({tuple(e.row for group in groups for e in group) for groups in epochs}) == 3
    together = [{frozenset(e.row for e in group) for group in groups} for groups in epochs]
    assert len(together[0] & together[1]) < 0.01 * len(epochs[0])


def test_max_steps_ends_training_in_the_middle_of_an_epoch() -> None:
    whole = plan(lambda _: EXAMPLES, 64, 0, epochs=3, max_steps=0)
    sizes = [len(groups) for groups in whole]
    assert len(sizes) == 3
    cut = plan(lambda _: EXAMPLES, 64, 0, epochs=3, max_steps=sizes[0] + 1)
    assert [len(groups) for groups in cut] == [sizes[0], 1]
    assert cut[0] == whole[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=20), st.integers(1, 5))
def test_shares_are_the_batch_and_about_as_large(lengths: list[int], processes: int) -> None:
    group = of_lengths(lengths)
    shares = [share(group, rank, processes) for rank in range(processes)]
    real = [[e for e in part if e.weight] for part in shares]
    assert sorted(e.row for part in real for e in part) == list(range(len(group)))
    assert all(shares)
    assert max(map(tokens, real)) - min(map(tokens, real)) <= max(lengths)


def test_a_batch_has_what_is_read_and_what_is_to_be_said() -> None:
    group = [Example([3, 4, 5, 6], 2, 1.0, True, 0), Example([7, 8, 9], 2, 0.5, True, 1)]
    ids, lengths, answers, targets, weight = collate(group)
    assert (ids.tolist(), lengths) == ([3, 4, 5, 7, 8], [3, 2])
    assert answers.tolist() == [False, True, True, False, True]
    assert (targets.tolist(), weight.tolist()) == ([5, 6, 9], [1.0, 1.0, 0.5])


def test_calibration_marks_the_answer_s_own_tokens(bare: object) -> None:
    from pathlib import Path

    from infra.engines.chat import load_tokenizer, render

    tokenizer = load_tokenizer(Path(str(bare)))
    rows = [
        {"messages": [{"role": "user", "content": asked}], "tools": None, "weight": 1.0, "origin": "logged",
         "expected": {"role": "assistant", "content": "order 48213"}}
        for asked in ("where is order 48213 and when does it come", "where is it")
    ]  # fmt: skip
    (batch,) = calibration(rows, tokenizer, 2, 2)
    for ids, attended, answers, row in zip(
        batch["input_ids"], batch["attention_mask"], batch["loss_mask"], rows[::-1], strict=True
    ):
        whole = render(tokenizer, [*row["messages"], row["expected"]])
        prompt = render(tokenizer, row["messages"], prompt=True)
        assert ids[attended.bool()].tolist() == whole
        assert ids[answers].tolist() == whole[len(prompt) :]
