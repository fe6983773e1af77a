"""Rows of a frozen dataset as token sequences, and sequences as batches, in an order that seed and epoch decide."""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from infra.database.policy import SAID

if TYPE_CHECKING:
    from torch import Tensor

POOL = 64  # batches that are packed together: they come to be 99 % full, and who meets whom stays chance


class Sequenced(Protocol):
    """Whatever has token ids."""

    @property
    def ids(self) -> list[int]: ...


T = TypeVar("T", bound=Sequenced)


class Example(NamedTuple):
    """One training sequence.

    Attributes:
        ids: Prompt and answer.
        prompt: Where the answer begins.
        weight: By the feedback policy.
        follow: Whether the teacher is right here; not where a person said what is.
        row: Its number among the rows that were encoded.
    """

    ids: list[int]
    prompt: int
    weight: float
    follow: bool
    row: int


class Batch(NamedTuple):
    """Sequences one after another, each without its last token, which predicts nothing; t tokens in all.

    Attributes:
        ids: long [t].
        lengths: Of each sequence in `ids`.
        answers: Positions whose next token belongs to an answer, bool [t]; n of them.
        targets: Those next tokens, long [n].
        weight: Of each, float32 [n].
    """

    ids: "Tensor"
    lengths: list[int]
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
            examples.append(Example(whole, len(prompt), item["weight"], item["origin"] not in SAID, row))
    return examples


def schedule(examples: Sequence[T], batch_tokens: int, seed: int, epoch: int, packed: bool = True) -> list[list[T]]:
    """One epoch's batches of at most `batch_tokens` tokens; a sequence that is longer is a batch of its own.

    The shuffled examples are taken in pools; the emptiest batch of a pool goes into the next.

    Args:
        packed: Any lengths together; else similar ones, and the padding that puts them side by side counts.
    """
    rng = Random(f"{seed}:{epoch}")
    waiting = rng.sample(examples, len(examples))[::-1]
    groups: list[list[T]] = []
    while waiting:
        pool, tokens = [], 0
        while waiting and tokens < POOL * batch_tokens:
            pool.append(waiting.pop())
            tokens += len(pool[-1].ids)
        made = pack(pool, batch_tokens) if packed else side_by_side(pool, batch_tokens)
        if waiting and len(made) > 1:
            emptiest = min(made, key=lambda group: sum(len(e.ids) for e in group))
            made.remove(emptiest)
            waiting += emptiest
        groups += made
    rng.shuffle(groups)
    return groups


def pack(examples: Sequence[T], size: int) -> list[list[T]]:
    """Best fit decreasing (Johnson 1973): the longest first, each where it leaves the least room."""
    groups: list[list[T]] = []
    rooms: list[tuple[int, int]] = []  # (room left, group), ascending
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        length = len(example.ids)
        at = bisect_left(rooms, (length, 0))
        if at == len(rooms):
            room, group = size, len(groups)
            groups.append([])
        else:
            room, group = rooms.pop(at)
        groups[group].append(example)
        insort(rooms, (room - length, group))
    return groups


def side_by_side(examples: Sequence[T], size: int) -> list[list[T]]:
    """Similar lengths together, each batch at most `size` tokens with its padding."""
    groups: list[list[T]] = [[]]
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(example.ids) > size:
            groups.append([])
        groups[-1].append(example)
    return groups


def plan(
    seen: Callable[[int], Sequence[T]], batch_tokens: int, seed: int, epochs: int, max_steps: int, packed: bool = True
) -> list[list[list[T]]]:
    """The batches of each epoch, cut off after `max_steps` in all; 0 is no limit.

    Args:
        seen: Epoch → the examples that it sees.
    """
    planned, left = [], max_steps or math.inf
    for epoch in range(epochs):
        groups = schedule(seen(epoch), batch_tokens, seed, epoch, packed)
        planned.append(groups[: int(min(left, len(groups)))])
        left -= len(groups)
        if left <= 0:
            break
    return planned


def share(group: Sequence[Example], rank: int, processes: int) -> list[Example]:
    """What of a batch one of several processes takes, in the batch's order, each about as many tokens.

    Where there are fewer examples than processes, some take one at weight 0: no process may sit a step out.
    """
    loads, taken = [0] * processes, {}
    for i in sorted(range(len(group)), key=lambda i: -len(group[i].ids)):
        taken[i] = loads.index(min(loads))
        loads[taken[i]] += len(group[i].ids)
    own = [example for i, example in enumerate(group) if taken[i] == rank]
    return own or [group[0]._replace(weight=0.0)]


def collate(group: Sequence[Example], device: Any = None) -> Batch:
    """A batch of some sequences."""
    import torch

    ids = torch.tensor([token for e in group for token in e.ids[:-1]])
    answers = torch.tensor([at >= e.prompt - 1 for e in group for at in range(len(e.ids) - 1)])
    targets = torch.tensor([token for e in group for token in e.ids[e.prompt :]])
    weight = torch.tensor([e.weight for e in group], dtype=torch.float32).repeat_interleave(lengths(group))
    ids, answers, targets, weight = (part.to(device) for part in (ids, answers, targets, weight))
    return Batch(ids, [len(e.ids) - 1 for e in group], answers, targets, weight)


def lengths(group: Sequence[Example]) -> "Tensor":
    """Tokens of each answer, long [b]."""
    import torch

    return torch.tensor([len(e.ids) - e.prompt for e in group])


def calibration(rows: Sequence[dict[str, Any]], tokenizer: Any, size: int, limit: int) -> Iterator[dict[str, "Tensor"]]:
    """Rows as `quant` reads them: `input_ids`, `attention_mask` and `loss_mask` [size, t], padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    examples = sorted(encode(tokenizer, rows[:limit], 1024), key=lambda e: len(e.ids))
    for start in range(0, len(examples), size):
        group = examples[start : start + size]
        whole = torch.tensor([len(e.ids) for e in group])[:, None]
        prompt = torch.tensor([e.prompt for e in group])[:, None]
        at = torch.arange(int(whole.max()))
        # The mask of `quant` marks the answer's tokens themselves, one further than where they are predicted.
        yield {
            "input_ids": pad_sequence([torch.tensor(e.ids) for e in group], batch_first=True),
            "attention_mask": (at < whole).long(),
            "loss_mask": (prompt <= at) & (at < whole),
        }
