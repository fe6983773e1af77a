"""Hard cases: what the student does not yet answer as it should is drawn more often in the next epoch.

An example is hard when its answer, read along, is not the likeliest token somewhere: exactly then greedy decoding says
something else than the teacher, or than who corrected it. One pass without gradients, no generation.

An epoch keeps its number of steps. Of N examples with weights w, each is drawn ⌊c⌋ or ⌈c⌉ times, c = N · w / Σ w
(systematic resampling), so the easy ones are not forgotten, only rarer.
"""

from collections.abc import Collection, Sequence
from random import Random
from typing import Any

from tasks.training.examples import Example, collate, lengths, schedule


def unlearned(model: Any, examples: Sequence[Example], batch_tokens: int, packed: bool) -> list[int]:
    """Rows of the examples whose answers the adapted model does not give greedily."""
    import torch

    from tasks.lessons.imitation import answer_logits

    model.eval()
    found = []
    with torch.no_grad():
        for group in schedule(examples, batch_tokens, 0, 0, packed):
            batch = collate(group, model.device)
            wrong = answer_logits(model, batch).argmax(-1) != batch.targets
            found += [e.row for e, part in zip(group, wrong.split(lengths(group).tolist()), strict=True) if part.any()]
    model.train()
    return sorted(found)


def redrawn(
    examples: Sequence[Example],
    hard: Collection[int],
    times: float,
    batch_tokens: int,
    seed: int,
    epoch: int,
    n: int,
    packed: bool,
) -> list[list[Example]]:
    """An epoch of n batches, with the hard rows drawn `times` as often as the others."""
    known = set(hard)
    weights = [times if e.row in known else 1.0 for e in examples]
    rng = Random(f"{seed}:{epoch}:hard")
    groups: list[list[Example]] = []
    while len(groups) < n:  # the hard ones may be the shorter ones
        groups += schedule(systematic(examples, weights, rng), batch_tokens, rng.getrandbits(32), epoch, packed)
    return groups[:n]


def systematic(examples: Sequence[Example], weights: Sequence[float], rng: Random) -> list[Example]:
    """As many examples as there are, each within one of its expected number of times."""
    step, place = sum(weights) / len(examples), rng.random()
    drawn: list[Example] = []
    so_far = 0.0
    for example, weight in zip(examples, weights, strict=True):
        so_far += weight / step
        while place < so_far and len(drawn) < len(examples):
            drawn.append(example)
            place += 1
    return drawn
