"""Logits: the answers, and the teacher's distribution at each of their positions (Hinton et al. 2015, section 2).

    loss = Σ w · [ CE(answer) + weight · D(teacher, student) ] / Σ w

D is a divergence over the teacher's top-k tokens and one bucket for the rest (`divergences.py`). Of a local teacher
they are computed once and kept beside the dataset: 1.7 times the speed of running the teacher in each step. Of an
endpoint they are what was logged with its answers. Where there are none, the answer alone is imitated, and the
student's report says how often and why.

A local teacher with another vocabulary is followed only if asked to be (`tokenizers="aligned"`, `alignment.py`): it
then teaches how sure it was of its words, and nothing else.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.lessons.alignment import Pieces, difference, pieces_of, shared, side_by_side
from tasks.lessons.divergences import Kind, at_tokens, diverge, with_rest
from tasks.lessons.imitation import Imitation, answer_logits, cross_entropy, weighted
from tasks.lessons.lesson import Desk, Teach
from tasks.lessons.top_k import CORRECTED, OTHERWISE, TopK, followed, known_of, say
from tasks.training.examples import Example, collate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """The answers and the teacher's distribution."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["logits"] = "logits"
    weight: Annotated[float, Field(gt=0, description="Of the teacher's distribution beside the answers")] = 1.0
    top_k: Annotated[int, Field(ge=1, le=1024, description="Teacher tokens kept at each position")] = 32
    divergence: Annotated[Kind, Field(description="Between teacher and student")] = "forward_kl"
    beta: Annotated[float, Field(gt=0, lt=1, description="Weight of the teacher in the JSD's mixture")] = 0.5
    temperature: Annotated[float, Field(gt=0, description="Of both distributions, when compared")] = 1.0
    tokenizers: Annotated[
        Literal["same", "aligned"],
        Field(
            description="A local teacher with another vocabulary: imitate its answers alone, or align the two by text"
        ),
    ] = "same"
    follows: ClassVar[bool] = True

    def prepare(self, desk: Desk) -> Teach:
        from infra.engines.chat import load_tokenizer

        theirs = desk.teacher and load_tokenizer(Path(desk.teacher.path))
        if differs := theirs and difference(desk.tokenizer, theirs):
            if self.tokenizers == "aligned":
                return self.toward_pieces(known_pieces(desk, theirs))
            way_out = '--distill.learn \'{"name": "logits", "tokenizers": "aligned"}\' follows it all the same'
            say(desk, 0, Counter({f"{differs}; {way_out}": len(desk.examples)}))
            return Imitation().prepare(desk)
        known = known_of(desk, self.top_k, theirs)
        return self.toward(known) if known else Imitation().prepare(desk)

    def toward(self, known: TopK) -> Teach:
        """The lesson, with the teacher's distributions at hand."""

        def teach(model: Any, group: Sequence[Example], at: float) -> "Tensor":
            batch = collate(group, model.device)
            logp = answer_logits(model, batch.ids, batch.answers).log_softmax(-1)
            values, tokens, follow = (part.to(model.device) for part in followed(group, known))
            apart = self.between(*at_tokens(logp, values, tokens))
            return weighted(cross_entropy(logp, batch.targets) + self.weight * follow * apart, batch.weight)

        return teach

    def toward_pieces(self, known: dict[int, Pieces]) -> Teach:
        """The lesson across two tokenizers."""

        def teach(model: Any, group: Sequence[Example], at: float) -> "Tensor":
            batch = collate(group, model.device)
            loss = cross_entropy(answer_logits(model, batch.ids, batch.answers).log_softmax(-1), batch.targets)
            piece, first, theirs = (part.to(model.device) for part in side_by_side(group, known))
            ours = theirs.new_zeros(len(theirs)).index_add(0, piece[piece >= 0], -loss[piece >= 0])
            apart = self.between(*(with_rest(logp[:, None]) for logp in (theirs, ours)))
            return weighted(loss.index_add(0, first, self.weight * apart), batch.weight)

        return teach

    def between(self, teacher: "Tensor", student: "Tensor") -> "Tensor":
        """The divergence [n] of log-probabilities [n, m] over the same m outcomes."""
        return diverge(self.divergence, teacher, student, self.beta, self.temperature)


def known_pieces(desk: Desk, theirs: Any) -> dict[int, Pieces]:
    """How likely the local teacher, whose tokenizer is `theirs`, holds the pieces of text that it shares with us."""
    from tasks.lessons.reading import UNREAD, as_the_teacher_reads, said
    from tasks.teachers.hf import of_the_answer

    wanted = [e for e in desk.examples if e.follow]
    read = as_the_teacher_reads(desk, theirs)
    heard = [(e, read[e.row]) for e in wanted if e.row in read]
    why = Counter({CORRECTED: len(desk.examples) - len(wanted), UNREAD: len(wanted) - len(heard)})
    found = {}
    opinions = said(desk, [their for _, their in heard], "answer", of_the_answer)
    for (e, their), (logp, its_own) in zip(heard, opinions, strict=True):
        answer = e.ids[e.prompt :]
        spans = shared(desk.tokenizer, theirs, answer, their.ids[their.prompt :])
        if pieces := pieces_of(spans, len(answer), logp, its_own):
            found[e.row] = pieces
        else:
            why[OTHERWISE] += 1
    say(desk, len(found), why)
    return found
