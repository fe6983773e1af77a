"""What every lesson is: given what there is to learn from, it says the loss of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.training.examples import Example

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.teachers.hf import LocalTeacher

Progress = Callable[[int, int, str], None]

Teach = Callable[[Any, Sequence[Example], float], "Tensor"]
"""(adapted model, batch, share of all steps that are done with this one) → the loss, a scalar with a gradient."""


@dataclass(frozen=True)
class Desk:
    """What a lesson is prepared from.

    Attributes:
        examples: The training sequences, as the student's tokenizer reads them.
        tokenizer: The student's.
        teacher: Whose distribution can be followed; None where there is no such teacher.
        folder: The dataset's, where what was computed once is kept.
        seed: Of what is random.
    """

    examples: Sequence[Example]
    tokenizer: Any
    teacher: "LocalTeacher | None"
    folder: Path
    seed: int
    progress: Progress | None
