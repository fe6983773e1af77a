"""What every lesson is: given what there is to learn from, it says the loss of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.training.examples import Example

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.frozen import Dataset
    from tasks.teachers.hf import LocalTeacher

Progress = Callable[[int, int, str], None]

Teach = Callable[[Any, Sequence[Example], float], "Tensor"]
"""(adapted model, batch, share of all steps that are done with this one) → the loss, a scalar with a gradient."""


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
