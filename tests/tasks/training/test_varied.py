"""What an epoch sees: varied rows are imitated, the same ones each time, and none is lost."""

from typing import Any

from tasks.training.examples import Example
from tasks.training.varied import change, varying
from tests.tasks.training.test_mentions import ROWS, arguments, question, row


def encode(rows: Any) -> list[Example]:
    return [
        Example(list(question(row).encode()), 3, 1.0, True, n) for n, row in enumerate(rows) if len(question(row)) < 40
    ]


def test_an_epoch_sees_the_varied_rows_as_examples_to_imitate_and_the_same_ones_each_time() -> None:
    rows = [*ROWS, row("no mention here", code="X")]
    examples = encode(rows)
    seen = varying(change(rows, 1.0, 0.0, 0), examples, encode)
    for epoch in range(20):
        epochs = seen(epoch)
        assert [e.row for e in epochs] == [0, 1, 2, 3]
        assert epochs[3] == examples[3]
        assert all(not e.follow or e == examples[e.row] for e in epochs), "what is longer than allowed stays as it was"
        assert seen(epoch) == epochs
    assert len({bytes(seen(epoch)[0].ids) for epoch in range(20)}) > 3


def test_a_question_may_have_other_mentions_and_fewer_words_at_once() -> None:
    changed = change(ROWS, 1.0, 0.5, 0)
    seen = [after for epoch in range(40) if (after := changed(0, epoch))]
    assert all(value in question(after) for after in seen for value in arguments(after).values())
    assert len({question(after) for after in seen}) > 20
    assert any(arguments(after) != arguments(ROWS[0]) and "table" not in question(after) for after in seen)
