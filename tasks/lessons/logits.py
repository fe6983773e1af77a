"""Logits: the answers, and the teacher's distribution at each of their positions (Hinton et al. 2015, eq. 4, at T = 1).

    loss = Σ w · [ CE(answer) + weight · KL(teacher ‖ student) ] / Σ w

The teacher's distribution is its top-k tokens and one bucket for the rest, computed once and kept beside the dataset:
1.7 times the speed of running the teacher in each step. A corrected answer is one the teacher got wrong, so there its
distribution is left out. Without a teacher whose weights are at hand, and who reads the same tokens, this is imitation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.lessons.imitation import Imitation, answer_logits, cross_entropy, weighted
from tasks.lessons.lesson import Desk, Loss, Teach
from tasks.training.examples import Example, collate, lengths

if TYPE_CHECKING:
    from torch import Tensor

TopK = dict[int, tuple["Tensor", "Tensor"]]
"""Row → the teacher's log-probabilities float16 [n, k] at an answer's n positions, and their token ids int32 [n, k]."""


@dataclass(frozen=True)
class Logits:
    """The answers and the teacher's distribution."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["logits"] = "logits"
    weight: Annotated[float, Field(gt=0, description="Of the teacher's distribution beside the answers")] = 1.0
    top_k: Annotated[int, Field(ge=1, le=1024, description="Teacher tokens kept at each position")] = 32
    follows: ClassVar[bool] = True

    def prepare(self, desk: Desk) -> Teach:
        if desk.teacher is None:
            return Imitation().prepare(desk)
        return self.toward(teacher_logits(desk, self.top_k))

    def toward(self, known: TopK) -> Teach:
        """The lesson, with the teacher's distributions at hand."""

        def teach(model: Any, group: Sequence[Example], at: float) -> Loss:
            batch = collate(group, model.device)
            logp = answer_logits(model, batch).log_softmax(-1)
            values, tokens, follow = (part.to(model.device) for part in followed(group, known))
            loss = cross_entropy(logp, batch.targets) + self.weight * follow * top_k_kl(values, logp.gather(-1, tokens))
            return weighted(loss, batch.weight)

        return teach


def teacher_logits(desk: Desk, k: int) -> TopK:
    """The teacher's top-k at each answer position; computed once and kept with the dataset."""
    import torch
    from safetensors.torch import load_file, save_file

    from tasks.teachers.hf import model_fingerprint

    assert desk.teacher is not None
    name = f"teacher-{model_fingerprint(desk.teacher.path)[:12]}-{len(desk.examples)}-top{k}.safetensors"
    path: Path = desk.folder / name
    if not path.exists():
        asked = [(e.ids, e.prompt) for e in desk.examples]
        values, tokens = zip(*desk.teacher.top_k(asked, k, desk.progress), strict=True)
        offsets = [0, *accumulate(map(len, values))]
        stored = {"logp": torch.cat(values), "ids": torch.cat(tokens), "offsets": torch.tensor(offsets)}
        save_file({**stored, "rows": torch.tensor([e.row for e in desk.examples])}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    stored = load_file(path)
    bounds = stored["offsets"].tolist()
    return {
        row: (stored["logp"][a:b], stored["ids"][a:b])
        for row, a, b in zip(stored["rows"].tolist(), bounds, bounds[1:], strict=False)
    }


def followed(group: Sequence[Example], known: TopK) -> tuple["Tensor", "Tensor", "Tensor"]:
    """A batch's teacher: log-probabilities float32 [n, k], token ids long [n, k], and [n] 1 where they are followed."""
    import torch

    pairs = [known[e.row] for e in group]
    follow = torch.tensor([float(e.follow) for e in group]).repeat_interleave(lengths(group))
    return torch.cat([v for v, _ in pairs]).float(), torch.cat([t for _, t in pairs]).long(), follow


def top_k_kl(teacher: "Tensor", student: "Tensor") -> "Tensor":
    """KL(teacher ‖ student) over k tokens and one bucket for all the others; log-probabilities [n, k] → [n].

    What the k leave of the teacher's mass is held against what the student gives all other tokens together, so nothing
    is said of how either spreads it: this is the whole KL of a teacher that spreads its rest as the student does, and
    never more than that of the real one (the data-processing inequality). A token at -inf is none: it fills up a
    position of which fewer are known, and leaves the student's mass there in the bucket. Where nothing is known, 0.
    """
    there = teacher > float("-inf")
    p, q = teacher.exp(), (student.exp() * there)
    rest_p = (1 - p.sum(-1)).clamp_min(1e-6)
    rest_q = (1 - q.sum(-1)).clamp_min(1e-6)
    apart = (teacher - student).masked_fill(~there, 0)
    return (p * apart).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
