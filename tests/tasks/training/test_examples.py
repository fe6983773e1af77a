"""The order of batches: every example once an epoch, another order each time, and an end where one is asked."""

from tasks.training.examples import plan, schedule
from tests.tasks.lessons.toy import EXAMPLES


def test_every_example_is_seen_once_an_epoch_in_another_order_each_time() -> None:
    epochs = [[e.row for group in schedule(EXAMPLES, 64, 0, n) for e in group] for n in range(3)]
    assert all(sorted(rows) == list(range(24)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert epochs[0] == [e.row for group in schedule(EXAMPLES, 64, 0, 0) for e in group]


def test_max_steps_ends_training_in_the_middle_of_an_epoch() -> None:
    whole = plan(EXAMPLES, 64, 0, epochs=3, max_steps=0)
    sizes = [len(groups) for groups in whole]
    assert len(sizes) == 3
    cut = plan(EXAMPLES, 64, 0, epochs=3, max_steps=sizes[0] + 1)
    assert [len(groups) for groups in cut] == [sizes[0], 1]
    assert cut[0] == whole[0]
