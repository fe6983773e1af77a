"""The last word of every method that learns: match what the unquantized model says, and never end worse than begun.

Layer-wise methods keep each layer's output; what matters is what the model says. So parameters are trained with the
rounding in the loop, on KL(unquantized || quantized) over the next-token distributions of the calibration data: at the
answers' tokens where a `loss_mask` tells them, else everywhere (Hinton et al. 2015, arXiv 1503.02531; on quantized
language models Liu et al. 2023, LLM-QAT, arXiv 2305.17888, section 3.1).

A small model learns 128 sequences by heart sooner than it learns what they have in common. So every lesson after its
first time is disturbed: a share of each sequence's tokens, drawn anew from 0 to twice `NOISE`, gives way to tokens of
its batch, and the unquantized model is asked what it says to *that*. No text is needed for it, and no label is wrong.
On text of another kind than the calibration's, 0.94 M BabyLlama, 384 steps from GPTQ: KL 0.0189 -> 0.0165 at 4 bits,
0.263 -> 0.227 at 2. Sequences that were not seen yet teach more as they are: on 2,048 of the seedling student's tasks,
int2, half a pass takes the exam's KL from 0.050 to 0.044 undisturbed and to 0.047 disturbed.

Every `HELD`-th sequence is held back as an exam. `CHECKS` times on the way the model is settled on its codes and stored
scales and measured on them; the best state wins, the one it started from among them. The exam is part of the
calibration data, so numbers that are to be believed need data of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant import Progress
from quant.anatomy import head
from quant.calibrate import Batch
from quant.errors import QuantError

HELD = 6
CHECKS = 4
NOISE = 0.2
GAIN_RATE = 0.1


class Lesson(NamedTuple):
    """A batch, where its predictions count Bool[b, t], and the unquantized model's log-probabilities there [n, V]."""

    batch: Batch
    where: Tensor
    wanted: Tensor


class Course(NamedTuple):
    """What to learn from and whom to ask, and what to be examined on."""

    batches: list[Batch]
    teacher: nn.Module
    exam: list[Lesson]

    def draw(self, i: int, random: torch.Generator, disturbed: bool) -> Lesson:
        """A lesson on batch `i`, as it is or disturbed."""
        if not disturbed:
            return lesson(self.teacher, self.batches[i])
        ids, attended = self.batches[i]["input_ids"], self.batches[i]["attention_mask"].bool()
        pool = ids[attended]
        others = pool[torch.randint(len(pool), ids.shape, generator=random).to(ids.device)]
        share = 2 * NOISE * torch.rand(len(ids), 1, generator=random)
        moved = (torch.rand(ids.shape, generator=random) < share).to(ids.device) & attended
        return lesson(self.teacher, {**self.batches[i], "input_ids": torch.where(moved, others, ids)})


@dataclass
class Learner:
    """What is being trained: parameters, how to leave a step within bounds, and what the model becomes at a check.

    Attributes:
        parameters: in units that one learning rate fits.
        training: modules by name while training.
        settled: called for the modules by name that would be served as things stand; a fresh set each time.
        gains: of norms, which move at a tenth of the rate.
        bound: called after each step.
    """

    parameters: list[nn.Parameter]
    training: Mapping[str, nn.Module]
    settled: Callable[[], Mapping[str, nn.Module]]
    gains: Sequence[nn.Parameter] = ()
    bound: Callable[[], None] = field(default=lambda: None)


def course(model: nn.Module, batches: Sequence[Batch]) -> Course:
    """Lessons and exam by `model`, which is not quantized yet. Raises QuantError where there is too little for both.

    The teacher has modules of its own and shares the tensors, which no method changes.
    """
    learned, held = _split(batches)
    teacher = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()
    return Course(learned, teacher, [lesson(model, batch) for batch in held])


@torch.no_grad()
def lesson(model: nn.Module, batch: Batch) -> Lesson:
    """What `model`, not quantized yet, says on a batch."""
    where = _where(batch)
    return Lesson(batch, where, log_probabilities(model, batch, where))


def train(
    model: nn.Module, learner: Learner, taught: Course, steps: int, learning_rate: float, seed: int, progress: Progress
) -> float:
    """Train with Adam at a rate falling to zero; leave the best settled state in `model` and return its KL on the exam.

    What `model` holds at the beginning must be the learner's settled state of then.
    """
    best: Mapping[str, nn.Module] = {name: deepcopy(model.get_submodule(name)) for name in learner.training}
    least = kl = measure(model, taught.exam)
    groups: list[dict[str, Any]] = [{"params": learner.parameters}]
    if learner.gains:
        groups.append({"params": learner.gains, "lr": learning_rate * GAIN_RATE})
    optimizer = torch.optim.Adam(groups, learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / max(steps, 1))
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for step in range(1, steps + 1):
        queue = queue or torch.randperm(len(taught.batches), generator=order).tolist()
        place(model, learner.training)
        loss = _divergence(model, taught.draw(queue.pop(), order, disturbed=step > len(taught.batches)))
        optimizer.zero_grad()
        loss.backward(inputs=[*learner.parameters, *learner.gains])
        optimizer.step()
        schedule.step()
        learner.bound()
        if step * CHECKS // steps > (step - 1) * CHECKS // steps:
            now = learner.settled()
            place(model, now)
            kl = measure(model, taught.exam)
            if kl < least:
                best, least = now, kl
        progress(step, steps, f"KL {kl:.1e}")
    place(model, best)
    return least


@torch.no_grad()
def measure(model: nn.Module, exam: list[Lesson]) -> float:
    """Mean KL(unquantized || model) in nats per position over all of `exam`."""
    sums = [float(_divergence(model, lesson)) * len(lesson.wanted) for lesson in exam]
    return sum(sums) / sum(len(lesson.wanted) for lesson in exam)


def place(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put modules into the model by name."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The batches without every `HELD`-th sequence, and those sequences. Raises QuantError where one part is empty."""
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    seen = 0
    for batch in batches:
        rows = torch.arange(len(batch["input_ids"])) + seen
        seen += len(rows)
        for part, chosen in zip(parts, (rows % HELD != 0, rows % HELD == 0), strict=True):
            cut = {key: tensor[chosen] for key, tensor in batch.items()}
            if bool(_where(cut).any()):
                part.append(cut)
    if not all(parts):
        raise QuantError(f"training takes some sequences and measures on others, got {seen} with answers; pass more")
    return parts


def _where(batch: Batch) -> Tensor:
    """Bool[b, t]: the positions whose next token counts."""
    attended = batch["attention_mask"].bool()
    if "loss_mask" not in batch:
        return attended
    answer_follows = (batch["loss_mask"] & attended).roll(-1, dims=1)
    answer_follows[:, -1] = False
    return answer_follows & attended


def log_probabilities(model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
    """float32 [n, V] at the positions of `where`. The head, a large part of a small model, sees no others."""
    device = next(model.parameters()).device
    ids, mask, chosen = (t.to(device) for t in (batch["input_ids"], batch["attention_mask"], where))
    top = head(model)
    if top is None:
        raise QuantError(f"{type(model).__name__} has no output head to learn by; use rtn, gptq, awq or autoround")
    hook = top.register_forward_pre_hook(lambda module, args: (args[0][chosen],))
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        hook.remove()
    return logits.float().log_softmax(-1)


def _divergence(model: nn.Module, lesson: Lesson) -> Tensor:
    """Mean KL(unquantized || model) per position, in nats."""
    given = log_probabilities(model, lesson.batch, lesson.where)
    return (lesson.wanted.exp() * (lesson.wanted - given)).sum(-1).mean()
