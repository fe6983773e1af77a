"""Whether a workload's answers are a closed set: few enough, seen often enough, and all there before they are needed.

A set is closed where there are 2 to 1,000 distinct answers (a text, or calls with their arguments: `policy.meaning`),
the rows to train on have each of them five times on average, and at least 95 % of the holdout, which is later, has an
answer that occurs in them. Then an encoder with a head can answer (`students/classifier.py`).
"""

from typing import Any

from infra.database.jsontext import number_of
from infra.database.policy import meaning

MOST = 1000
TIMES = 5
COVERED = 0.95


class Answers:
    """Counts answers as they go into a dataset, in order of time; of more than `MOST` it remembers no more."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self.learned = self.later = self.covered = 0

    def add(self, split: str, answer: dict[str, Any]) -> None:
        number = number_of(meaning(answer))
        if split == "train":
            self.learned += 1
            if len(self._known) <= MOST:
                self._known.add(number)
        elif split == "holdout":
            self.later += 1
            self.covered += number in self._known

    def report(self) -> dict[str, Any]:
        """`closed`, `distinct` (1,001 stands for more), and `covered`: the share of the holdout that has one of them.

        Of more than `MOST` answers `covered` counts those that are remembered.
        """
        distinct, covered = len(self._known), self.covered / max(1, self.later)
        closed = 2 <= distinct <= MOST and self.learned >= TIMES * distinct and covered >= COVERED
        return {"closed": closed, "distinct": distinct, "covered": round(covered, 4)}
