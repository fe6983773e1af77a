"""What every lesson is: given what there is to learn from, it says the loss of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.training.examples import Example

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.dataset.frozen import Dataset
    from tasks.teachers.hf import LocalTeacher

Progress = Callable[[int, int, str], None]


class Loss(NamedTuple):
    """The loss of a batch as a sum and what it is a sum over: parts of a batch on several processes add up exactly.

    Attributes:
        total: Σ w · loss, a scalar with a gradient.
        weight: Σ w, a scalar.
    """

    total: "Tensor"
    weight: "Tensor"

    @property
    def mean(self) -> "Tensor":
        return self.total / self.weight


Teach = Callable[[Any, Sequence[Example], float], Loss]
"""(adapted model, batch, share of all steps that are done with this one) → the loss; the step is by its mean."""


@dataclass(frozen=True)
class Desk:
    """What a lesson is prepared from.

    Attributes:
        dataset: Whose training rows these are; in its folder is kept what was computed once.
        rows: The training rows; `Example.row` counts them.
        examples: Those that are learned from, as the student's tokenizer reads them.
        tokenizer: The student's.
        teacher: Whose distribution can be asked for; None where there is no such teacher.
        seed: Of what is random.
        report: What a lesson has to say of what it found; it becomes part of the student's report.
    """

    dataset: "Dataset"
    rows: Sequence[dict[str, Any]]
    examples: Sequence[Example]
    tokenizer: Any
    teacher: "LocalTeacher | None"
    seed: int
    progress: Progress | None
    report: dict[str, Any] = field(default_factory=dict)
