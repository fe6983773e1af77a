"""Rows of a frozen dataset as token sequences, and sequences as batches, in an order that seed and epoch decide."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Example(NamedTuple):
    """One training sequence.

    Attributes:
        ids: Prompt and answer.
        prompt: Where the answer begins.
        weight: By the feedback policy.
        follow: Whether the teacher is right here; not where a person corrected it.
        row: Its number among the rows that were encoded.
    """

    ids: list[int]
    prompt: int
    weight: float
    follow: bool
    row: int


class Batch(NamedTuple):
    """Sequences side by side, padded on the right.

    Right padding needs no attention mask under causal attention: no answer position can see it.

    Attributes:
        ids: long [b, t].
        answers: Positions whose next token belongs to an answer, bool [b, t - 1]; n of them.
        targets: Those next tokens, long [n].
        weight: Of each, float32 [n].
    """

    ids: "Tensor"
    answers: "Tensor"
    targets: "Tensor"
    weight: "Tensor"


def encode(tokenizer: Any, rows: Sequence[dict[str, Any]], max_length: int) -> list[Example]:
    """Rows as sequences; those over `max_length` tokens are left out."""
    from infra.engines.chat import render

    examples = []
    for row, item in enumerate(rows):
        prompt = render(tokenizer, item["messages"], item["tools"], prompt=True)
        whole = render(tokenizer, [*item["messages"], item["expected"]], item["tools"])
        if len(whole) <= max_length and whole[: len(prompt)] == prompt:
            examples.append(Example(whole, len(prompt), item["weight"], item["origin"] != "correction", row))
    return examples


def schedule(examples: Sequence[Example], batch_tokens: int, seed: int, epoch: int) -> list[list[Example]]:
    """One epoch's batches: shuffled, then grouped by similar length inside pools, then shuffled again."""
    rng = Random(f"{seed}:{epoch}")
    shuffled = rng.sample(examples, len(examples))
    groups: list[list[Example]] = []
    for start in range(0, len(shuffled), 512):
        group: list[Example] = []
        for example in sorted(shuffled[start : start + 512], key=lambda e: len(e.ids)):
            if group and (len(group) + 1) * len(example.ids) > batch_tokens:
                groups.append(group)
                group = []
            group.append(example)
        groups.append(group)
    rng.shuffle(groups)
    return groups


def plan(
    examples: Sequence[Example], batch_tokens: int, seed: int, epochs: int, max_steps: int
) -> list[list[list[Example]]]:
    """The batches of each epoch, cut off after `max_steps` in all; 0 is no limit."""
    planned, left = [], max_steps or math.inf
    for epoch in range(epochs):
        groups = schedule(examples, batch_tokens, seed, epoch)
        planned.append(groups[: int(min(left, len(groups)))])
        left -= len(groups)
        if left <= 0:
            break
    return planned


def collate(group: Sequence[Example], device: Any = None) -> Batch:
    """A batch of some sequences."""
    import torch

    width = max(len(e.ids) for e in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    answers = torch.zeros(len(group), width - 1, dtype=torch.bool)
    for i, e in enumerate(group):
        ids[i, : len(e.ids)] = torch.tensor(e.ids)
        answers[i, e.prompt - 1 : len(e.ids) - 1] = True
    weight = torch.tensor([e.weight for e in group], dtype=torch.float32).repeat_interleave(lengths(group))
    return Batch(*(part.to(device) for part in (ids, answers, ids[:, 1:][answers], weight)))


def lengths(group: Sequence[Example]) -> "Tensor":
    """Tokens of each answer, long [b]."""
    import torch

    return torch.tensor([len(e.ids) - e.prompt for e in group])


def calibration(rows: Sequence[dict[str, Any]], tokenizer: Any, size: int, limit: int) -> Iterator[dict[str, "Tensor"]]:
    """Rows as `quant` reads them: `input_ids`, `attention_mask` and `loss_mask` [size, t]."""
    import torch

    examples = sorted(encode(tokenizer, rows[:limit], 1024), key=lambda e: len(e.ids))
    for start in range(0, len(examples), size):
        group = examples[start : start + size]
        batch = collate(group)
        whole = torch.tensor([len(e.ids) for e in group])[:, None]
        # The mask of `quant` marks the answer's tokens themselves, one further than where they are predicted.
        answers = torch.cat([torch.zeros(len(group), 1, dtype=torch.bool), batch.answers], dim=1)
        attention = (torch.arange(batch.ids.shape[1]) < whole).long()
        yield {"input_ids": batch.ids, "attention_mask": attention, "loss_mask": answers}
