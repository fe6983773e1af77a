"""QAT, quantization-aware training: learn the integers and scales by the distribution of the unquantized model.

Layer-wise methods keep each layer's output; what matters is what the model says. So, starting from GPTQ's integers,
weights are trained with the rounding in the loop, and the loss is KL(unquantized || quantized) over the next-token
distributions of the calibration data: at the answers' tokens where a `loss_mask` tells them, else everywhere.

    w = s round(p)        dL/dp = dL/dw s  inside the grid's range        (straight-through)
                          dL/ds = sum over the group of dL/dw round(p)    (learned step size)

(Esser et al. 2020, LSQ, arXiv 1902.08153, equations 1 to 3, with the integer's place p as the parameter instead of the
weight, so that s and p are independent and no gradient scale is needed. The loss: LLM-QAT, Liu et al. 2023, arXiv
2305.17888, section 3.1, on data instead of generated text.)

* Positions are in steps of the grid and start on GPTQ's integers, pulled a quarter of a step at most towards where the
  unquantized weight lies: weights that GPTQ nearly rounded the other way are the first to change their mind.
* Adam at one rate, falling to zero, for positions and scales in the units of `LatentLinear`; positions stay inside the
  range (outside, no gradient would ever bring them back). The default is the best over 2, 3, 4 and 8 bits; at twice
  the rate 2 and 3 bits end worse than they began. Few integers change at it: most of the gain is the scales'.
* Every `HELD`-th sequence is held back. A quarter of the way at a time, the model is settled on its integers and fp16
  scales and measured on them; the best state wins, the GPTQ state among them. So training never makes it worse.
* Left alone: embedding, head, norms and biases. Norms were tried: no gain beyond noise, and they would no longer be
  the student's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple

from quant.errors import QuantError
from quant.methods.base import Grids, Weights
from quant.methods.gptq import GPTQ

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant import Progress
    from quant.calibrate import Batch
    from quant.linear import LatentLinear, QuantLinear

HELD = 6
CHECKS = 4


@dataclass(frozen=True)
class QAT(Weights):
    """GPTQ, then training with the rounding in the loop to match the unquantized model's distributions.

    Attributes:
        name: which method this is.
        steps: optimizer steps, each on one of the batches; 0 is GPTQ.
        learning_rate: peak rate of Adam, in steps of the grid.
        seed: of the order of the batches.
    """

    name: Literal["qat"] = "qat"
    steps: int = 48
    learning_rate: float = 0.015
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or not 0 < self.learning_rate < 1:
            given = f"steps={self.steps} and learning_rate={self.learning_rate}"
            raise QuantError(f"qat got {given}; use 0 or more steps and a rate above 0 and below 1")

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, calibrating and training on `batches`."""
        from quant.anatomy import all_linears
        from quant.calibrate import require
        from quant.linear import LatentLinear, QuantLinear

        require(batches, self.name)
        training = model.training
        model.eval()
        lessons, exam = ([_lesson(model, batch) for batch in part] for part in _split(batches))
        layers = all_linears(model)
        weights = {name: linear.weight.detach() for name, linear in layers}
        total = len(layers) + self.steps
        shared = {field.name: getattr(self, field.name) for field in fields(Weights)}
        start = GPTQ(**shared)
        start.apply(model, batches, lambda done, _, what: progress(done, total, what), grids)
        rounded = {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
        latents = {name: LatentLinear(rounded[name], weight) for name, weight in weights.items()}
        trained = self._train(model, latents, lessons, exam, lambda n, _, what: progress(len(layers) + n, total, what))
        _place(model, trained)
        model.train(training)

    def _train(
        self, model: nn.Module, latents: dict[str, LatentLinear], lessons: list[_Lesson], exam: list[_Lesson],
        progress: Progress,
    ) -> dict[str, QuantLinear]:  # fmt: skip
        """The best layers by KL on `exam`, GPTQ's own (what `model` holds) among them."""
        import torch

        best: dict[str, QuantLinear] = {name: latent.layer for name, latent in latents.items()}
        least = kl = _measure(model, exam)
        learned = [p for latent in latents.values() for p in latent.learned()]
        optimizer = torch.optim.Adam(learned, self.learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / max(self.steps, 1))
        order = torch.Generator().manual_seed(self.seed)
        queue: list[int] = []
        for step in range(1, self.steps + 1):
            queue = queue or torch.randperm(len(lessons), generator=order).tolist()
            _place(model, latents)
            loss = _divergence(model, lessons[queue.pop()])
            optimizer.zero_grad()
            loss.backward(inputs=learned)
            optimizer.step()
            schedule.step()
            for latent in latents.values():
                latent.keep_inside()
            if step * CHECKS // self.steps > (step - 1) * CHECKS // self.steps:
                settled = {name: latent.settled() for name, latent in latents.items()}
                _place(model, settled)
                kl = _measure(model, exam)
                if kl < least:
                    best, least = settled, kl
            progress(step, self.steps, f"KL {kl:.1e}")
        return best


class _Lesson(NamedTuple):
    """A batch, where its predictions count Bool[b, t], and the unquantized model's log-probabilities there [n, V]."""

    batch: Batch
    where: Tensor
    wanted: Tensor


def _split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The batches without every `HELD`-th sequence, and those sequences. Raises QuantError where one part is empty."""
    import torch

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
        raise QuantError(f"qat trains on some sequences and is measured on others, got {seen} with answers; pass more")
    return parts


def _where(batch: Batch) -> Tensor:
    """Bool[b, t]: the positions whose next token counts."""
    attended = batch["attention_mask"].bool()
    if "loss_mask" not in batch:
        return attended
    answer_follows = (batch["loss_mask"] & attended).roll(-1, dims=1)
    answer_follows[:, -1] = False
    return answer_follows & attended


def _log_probabilities(model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
    """float32 [n, V] at the positions of `where`. The head, a large part of a small model, sees no others."""
    from quant.anatomy import head

    device = next(model.parameters()).device
    ids, mask, chosen = (t.to(device) for t in (batch["input_ids"], batch["attention_mask"], where))
    top = head(model)
    assert top is not None
    hook = top.register_forward_pre_hook(lambda module, args: (args[0][chosen],))
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        hook.remove()
    return logits.float().log_softmax(-1)


def _lesson(model: nn.Module, batch: Batch) -> _Lesson:
    import torch

    where = _where(batch)
    with torch.no_grad():
        return _Lesson(batch, where, _log_probabilities(model, batch, where))


def _divergence(model: nn.Module, lesson: _Lesson) -> Tensor:
    """Mean KL(unquantized || model) per position, in nats."""
    given = _log_probabilities(model, lesson.batch, lesson.where)
    return (lesson.wanted.exp() * (lesson.wanted - given)).sum(-1).mean()


def _measure(model: nn.Module, exam: list[_Lesson]) -> float:
    """Mean KL per position over all of `exam`."""
    import torch

    with torch.no_grad():
        sums = [float(_divergence(model, lesson)) * len(lesson.wanted) for lesson in exam]
    return sum(sums) / sum(len(lesson.wanted) for lesson in exam)


def _place(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)
