"""On-policy: at the end of training the student answers, and the teacher says what it thinks of each token.

Trained on the teacher's answers alone, a student never sees its own mistakes, and after one is where it was never
taught. So in the last `share` of the steps a batch is, with probability λ (Agarwal et al. 2024, "On-Policy Distillation
of Language Models", algorithm 1), answered by the student as it is, by sampling; the teacher reads these answers, and

    loss = Σ w · D(teacher, student) / Σ w        over the tokens that the student wrote, the whole vocabulary

No gradient goes through the sampling. All other batches, and requests that the teacher would not have answered as was
logged (`top_k.py`), are learned as by `logits`; with λ or share 0 that is all there is.

What is sampled for a request is a function of the seed, the step and its row, whatever is answered beside it: each has
a stream of chance of its own, one number a token, at which the distribution is cut. So several processes, which share
a batch, write what one would. It is at most twice as long as the answer that was logged, as when it serves (there: the
longest of all). How often a process runs the model depends on its answers, so the base cannot be sharded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import SetupError, settings
from tasks.lessons.alignment import difference
from tasks.lessons.divergences import Kind, diverge
from tasks.lessons.imitation import answer_logits, weighted
from tasks.lessons.lesson import Desk, Loss, Teach
from tasks.lessons.logits import Logits
from tasks.lessons.top_k import known_of
from tasks.training.examples import Example, collate


@dataclass(frozen=True)
class OnPolicy:
    """The teacher's distribution on the student's own answers, after `logits`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["on_policy"] = "on_policy"
    logits: Annotated[Logits, Field(title="Logits", description="What is learned from all other batches")] = Logits()  # noqa: RUF009 (frozen)
    share: Annotated[float, Field(ge=0, le=1, description="Of all steps, the last, in which the student answers")] = (
        0.25
    )
    rate: Annotated[float, Field(ge=0, le=1, description="GKD's λ: of their batches, those that it answers")] = 0.5
    divergence: Annotated[Kind, Field(description="Between teacher and student on its answers")] = "jsd"
    beta: Annotated[float, Field(gt=0, lt=1, description="Weight of the teacher in the JSD's mixture")] = 0.5
    sampling: Annotated[float, Field(gt=0, description="Temperature at which the student answers")] = 1.0
    follows: ClassVar[bool] = True

    def prepare(self, desk: Desk) -> Teach:
        """The lesson, with the teacher loaded.

        Raises:
            SetupError: There is no local teacher who writes the student's tokens; or the base is sharded.
        """
        import torch

        from infra.engines.chat import load_tokenizer
        from tasks.lessons.reading import as_the_teacher_reads
        from tasks.teachers.hf import load_model

        if desk.teacher is None:
            raise SetupError(
                "the lesson on_policy asks the teacher in each step, and there is none on this machine for workload "
                f"{desk.dataset.workload!r}; set FLYWHEEL_TEACHER to a Hugging Face id or path, or learn from logits"
            )
        if settings().torchrun and settings().shard:
            raise SetupError(
                "FLYWHEEL_SHARD has all processes run each layer together, and in the lesson on_policy each writes its "
                "own answers; unset it, or learn from logits"
            )
        theirs = load_tokenizer(Path(desk.teacher.path))
        if differs := difference(desk.tokenizer, theirs):
            raise SetupError(
                f"the lesson on_policy cannot follow a teacher with other tokens: {differs}; learn from logits"
            )
        known = known_of(desk, self.logits.top_k, theirs)
        whole = {row for row, (values, _) in known.items() if values.isfinite().any(-1).all()}
        read = as_the_teacher_reads(desk, theirs)
        teacher = load_model(desk.teacher.path).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        prompts = {row: read[row].ids[: read[row].prompt] for row in whole}
        return self.beside(self.logits.toward(known), teacher, prompts, desk)

    def beside(self, logged: Teach, teacher: Any, prompts: dict[int, list[int]], desk: Desk) -> Teach:
        """The lesson, with the other one at hand, and the teacher: its model, and by row what it reads of a request."""

        def teach(model: Any, group: Sequence[Example], at: float) -> Loss:
            moment = f"{desk.seed}:{at}"
            asked = [e for e in group if e.follow and e.row in prompts]
            if at <= 1 - self.share or Random(moment).random() >= self.rate or not asked:
                return logged(model, group, at)
            written = answer(model, desk.tokenizer, asked, self.sampling, moment)
            own = [e._replace(ids=e.ids[: e.prompt] + said) for e, said in zip(asked, written, strict=True)]
            loss = self.compared(model, teacher, own, prompts)
            if others := [e for e in group if e not in asked]:
                rest = logged(model, others, at)
                loss = Loss(loss.total + rest.total, loss.weight + rest.weight)
            return loss

        return teach

    def compared(self, model: Any, teacher: Any, own: Sequence[Example], prompts: dict[int, list[int]]) -> Loss:
        """The divergence on the student's answers, weighted."""
        import torch

        from tasks.training.forward import batch_logits

        batch = collate(own, model.device)
        student = answer_logits(model, batch)
        heard = [e._replace(ids=prompts[e.row] + e.ids[e.prompt :], prompt=len(prompts[e.row])) for e in own]
        with torch.no_grad():
            opinion = batch_logits(teacher, collate(heard, teacher.device)).float().to(model.device)
        width = min(student.shape[-1], opinion.shape[-1])  # heads are often wider than the vocabulary, by a little
        return weighted(diverge(self.divergence, opinion[:, :width], student[:, :width], self.beta), batch.weight)


def answer(model: Any, tokenizer: Any, group: Sequence[Example], temperature: float, moment: str) -> list[list[int]]:
    """What the student says to the prompts of a batch: token ids, the end of the answer among them.

    Args:
        moment: With it and its row an example is answered always the same.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width, pad, end = max(e.prompt for e in group), tokenizer.pad_token_id, tokenizer.eos_token_id
    padding = [width - e.prompt for e in group]
    ids = torch.tensor([[pad] * n + e.ids[: e.prompt] for n, e in zip(padding, group, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
    limits = [2 * (len(e.ids) - e.prompt) for e in group]
    chances = [Random(f"{moment}:{e.row}") for e in group]

    def draw(_: Any, scores: Any) -> Any:
        """Scores [b, vocabulary] that leave one token each: the first up to which its chance is reached."""
        whole = (scores.double() / temperature).softmax(-1).cumsum(-1)
        cut = torch.tensor([[chance.random()] for chance in chances], dtype=whole.dtype, device=whole.device)
        token = torch.searchsorted(whole, cut * whole[:, -1:], right=True).clamp(max=whole.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)

    how = GenerationConfig(max_new_tokens=max(limits), do_sample=False, eos_token_id=end, pad_token_id=pad)
    model.eval()
    with torch.no_grad():
        whole = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=how,
            logits_processor=LogitsProcessorList([draw]),
        )  # fmt: skip
    model.train()
    answers = [said[:limit] for said, limit in zip(whole[:, width:].tolist(), limits, strict=True)]
    return [said[: said.index(end) + 1] if end in said else said for said in answers]
