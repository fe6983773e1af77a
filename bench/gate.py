"""How often the gate errs: thousands of made-up holdouts whose truth is known, judged by the gate's own statistics.

    python bench/gate.py [--worlds 2000] [--resamples 999]

Each world is a holdout of the size `tasks/gate/power.py` recommends, with conversations of one to four items (half of
them answer all their items alike), and so many slices of equal size that share no item. The student is, in truth,

* worse by exactly the margin on the whole, and evenly so,
* worse by exactly the slice margin on one slice, and as good on the whole, since it is better elsewhere,
* as good everywhere.

The first two must be promoted with a chance of 5 % at the most, the third with 80 % at least. Values are right or wrong
(0/1), or a number such as ROUGE-L's: equal on six items of ten, else by the difference of two skewed draws, and what
makes a student worse is a half point lost now and then. What is called is what the gate calls: `Shares`, `Drawn`,
`holm` and `recommended`. A world is left as soon as a test's p-value is over 5 %, for then it is not promoted whatever
the others say. The gate draws 9,999 resamples; the bench fewer, which makes p-values coarser, not smaller.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from tasks.gate.bootstrap import Drawn
from tasks.gate.holm import holm
from tasks.gate.power import recommended
from tasks.gate.proportions import Shares, effective
from tasks.gate.rule import GateSpec
from tasks.metrics import RougeL

SPEC = GateSpec()
ALPHA = 1 - SPEC.confidence
DIFFER = 0.4  # items with another value
TRUTHS = ("worse", "worse on a slice", "equal")
MEAN = RougeL()  # any metric whose items come to their mean


def spread_of(binary: bool) -> float:
    """The deviation of an item's difference, as a user would have seen it before: 9 % of items differ, or as drawn."""
    if binary:
        return SPEC.spread
    rng = np.random.default_rng(99)
    return float(draws(rng, 200_000, False).std())


def draws(rng: np.random.Generator, n: int, binary: bool) -> np.ndarray:
    """Differences of two models that are equally good, (n,)."""
    if binary:
        lots = rng.random(n)
        half = SPEC.spread**2 / 2
        return (lots < half).astype(float) - (lots > 1 - half)
    differ = rng.random(n) < DIFFER
    return np.where(differ, rng.beta(1.2, 2, n) - rng.beta(1.2, 2, n), 0.0)


def shifted(rng: np.random.Generator, equal: np.ndarray, binary: bool, by: np.ndarray) -> np.ndarray:
    """The same, with a mean of `by`: items that were equal are won or lost, by a point or by half of one."""
    size, free = (1.0, 1 - SPEC.spread**2) if binary else (0.5, 1 - DIFFER)
    hit = (equal == 0) & (rng.random(len(equal)) < np.abs(by) / size / free)
    return np.where(hit, np.sign(by) * size, equal)


def world(rng: np.random.Generator, n: int, slices: int, binary: bool, clustered: bool, truth: str) -> tuple:
    """Conversations, slices (0 for none) and differences of n items; a conversation is of one slice."""
    sizes = rng.integers(1, 5, n) if clustered else np.ones(n, int)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    inside = rng.permutation(np.arange(len(sizes)) % (slices + 1))
    alike = rng.random(len(sizes)) < 0.5
    conversation = np.repeat(np.arange(len(sizes)), sizes)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def shared(values: np.ndarray) -> np.ndarray:
        return np.where(alike[conversation], values[first[conversation]], values)

    slice_of = inside[conversation]
    by = np.zeros(len(conversation))
    if truth == "worse":
        by[:] = -SPEC.margin
    if truth == "worse on a slice":
        by[:] = SPEC.slice_margin / slices
        by[slice_of == 1] = -SPEC.slice_margin
    equal = draws(rng, len(conversation), binary)
    return conversation, slice_of, shared(shifted(rng, equal, binary, by))


def comparisons(made: tuple, slices: int, binary: bool, resamples: int, first: int) -> Iterator[float]:
    """The p-value of each test; that of slice `first` comes first, 0 is the whole."""
    conversation, slice_of, lost = made
    for name in sorted(range(slices + 1), key=lambda name: name != first):
        mine = np.ones(len(lost), bool) if name == 0 else slice_of == name
        values, of = lost[mine], conversation[mine]
        margin = SPEC.slice_margin if name else SPEC.margin
        worth = effective(of.tolist())
        if binary:
            yield Shares(int((values > 0).sum()), int((values < 0).sum()), len(values), worth).above(-margin)
            continue
        numbers = np.unique(of, return_inverse=True)[1]
        n = np.bincount(numbers).astype(float)
        ours = np.stack([np.bincount(numbers, values), n], axis=1)
        theirs = np.stack([np.zeros(len(n)), n], axis=1)
        yield Drawn(ours, theirs, MEAN.together, len(values), worth, resamples).above(-margin)


def promoted(made: tuple, slices: int, binary: bool, resamples: int, first: int) -> bool:
    found = []
    for p_value in comparisons(made, slices, binary, resamples, first):
        if p_value > ALPHA:
            return False
        found.append(p_value)
    return all(level.shown for level in holm(found, ALPHA, slices + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=999)
    asked = parser.parse_args()
    print(f"{'values':<16} {'slices':>6} {'items':>6}  " + "  ".join(f"{t:>16}" for t in TRUTHS) + "   CPU s")
    for binary, clustered in ((True, False), (True, True), (False, True)):
        kind = ("0/1" if binary else "numbers") + (", clustered" if clustered else "")
        for slices in (1, 5, 20):
            tests = [(SPEC.margin, 1.0)] + [(SPEC.slice_margin, 1 / (slices + 1))] * slices
            worth = 1 / 3 if clustered else 1.0  # Kish, of sizes 1 to 4: 2.5 / 7.5
            n = recommended(tests, spread_of(binary), ALPHA, SPEC.power, slices + 1, binary, worth)
            shares, started = [], time.process_time()
            for truth in TRUTHS:
                rng = np.random.default_rng([slices, binary, clustered, TRUTHS.index(truth)])
                first = int(truth == "worse on a slice")
                worlds = (world(rng, n, slices, binary, clustered, truth) for _ in range(asked.worlds))
                shares.append(
                    sum(promoted(one, slices, binary, asked.resamples, first) for one in worlds) / asked.worlds
                )
            told = "  ".join(f"{share:>16.1%}" for share in shares)
            print(f"{kind:<16} {slices:>6} {n:>6}  {told}   {time.process_time() - started:5.0f}", flush=True)


if __name__ == "__main__":
    main()
