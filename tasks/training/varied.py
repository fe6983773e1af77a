"""What each epoch sees of the training rows, where they vary: other mentions, fewer words.

A varied row is imitated, whatever the lesson: the teacher never saw it.
"""

from collections.abc import Callable, Sequence
from random import Random

from tasks.training.examples import Example
from tasks.training.mentions import Mentions, Row
from tasks.training.word_dropout import without

Vary = Callable[[int], Sequence[Example]]
"""Epoch → the examples that it sees."""
Change = Callable[[int, int], Row | None]
"""(a row's number, epoch) → the row as that epoch sees it; None where it stays as it is."""


def change(rows: Sequence[Row], mentions: float, word_dropout: float, seed: int) -> Change:
    """Replace a share of the mentions of some rows, and leave out a share of their words."""
    found = Mentions(rows, mentions, seed)

    def seen(number: int, epoch: int) -> Row | None:
        other = found.varied(number, epoch)
        fewer = without(other or rows[number], word_dropout, Random(f"{seed}:{epoch}:{number}:words"))
        return fewer or other

    return seen


def varying(changed: Change, examples: Sequence[Example], encode: Callable[[Sequence[Row]], Sequence[Example]]) -> Vary:
    """The examples of each epoch, those of the varied rows anew by `encode`; one that grew too long stays as it was."""

    def of(epoch: int) -> Sequence[Example]:
        rows = {e.row: row for e in examples if (row := changed(e.row, epoch))}
        numbers = list(rows)
        fresh = {numbers[e.row]: e for e in encode(list(rows.values()))}
        return [fresh[e.row]._replace(row=e.row, follow=False) if e.row in fresh else e for e in examples]

    return of
