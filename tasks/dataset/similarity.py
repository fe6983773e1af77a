"""Near-duplicate requests: clusters by MinHash (Broder 1997) and locality-sensitive hashing, of a million texts.

Two texts are near duplicates where the sets of their 5-character shingles overlap by a Jaccard index of at least the
threshold, and every word with a digit in it is the same: "where is order 48213" and "where is order 91372" are two
tasks. MinHash finds the pairs worth a look, the index itself decides. Shingles that over half of the texts share are
the workload's template (fsi_news carries 3 kB of instructions in front of each headline) and are left out. Words as
shingles were tried: on snips they chain "What's the weather like in Topock" to the whole gazetteer.

Of each text some 150 bytes stay in memory: its marks and a number for each band of its signature. The shingles, as
numbers of 32 bits, lie in a temporary file, from which a pair is read when it is looked at. datasketch, which was here
before, keeps an object for each band of each text.
"""

import os
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.database.jsontext import number_of

Progress = Callable[[int, int, str], None]
Hashes = NDArray[np.uint32]
SHINGLE = 5
TEMPLATE_SHARE = 0.5
PERMUTATIONS = 128
RECALL = 0.97  # of the pairs that just reach the threshold
HEADS = 16  # of one run of equal band numbers that a text is compared with
WORD = re.compile(r"[^\W_]+")
NUMBER = re.compile(r"(?<![^\W_])[^\W_\d]*\d[^\W_]*")  # a word with a digit in it


def clusters(texts: Sequence[str], threshold: float, progress: Progress | None = None) -> list[int]:
    """A cluster number for each text; equal texts have the same.

    Args:
        threshold: Jaccard index from which two texts are near duplicates, in (0, 1].
    """
    with NearDuplicates(threshold, template(texts)) as near:
        for text in texts:
            near.add(text)
        return [int(number) for number in near.clusters(progress)]


def template(texts: Iterable[str]) -> Hashes:
    """The shingles that over half of these texts share, sorted; equal texts count once."""
    sets = [shingles(text) for text in dict.fromkeys(texts)]
    if not sets:
        return np.empty(0, np.uint32)
    found, counts = np.unique(np.concatenate(sets), return_counts=True)
    return found[counts > max(1, len(sets) * TEMPLATE_SHARE)]


class NearDuplicates:
    """Takes texts one by one, then tells their clusters.

    Args:
        threshold: Jaccard index from which two texts are near duplicates, in (0, 1].
        shared: Shingles to leave out, from `template`.
    """

    def __init__(self, threshold: float, shared: Hashes) -> None:
        self.threshold, self.shared = threshold, shared
        self.rows = rows_of(threshold)
        self.bands = PERMUTATIONS // self.rows
        chance = np.random.default_rng(1)
        self.factors, self.terms = chance.integers(1, 2**63, (2, PERMUTATIONS), np.uint64) | np.uint64(1)
        self.file: Any = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self.starts = array("Q", [0])
        self.texts, self.values, self.keys = array("Q"), array("Q"), array("I")

    def __enter__(self) -> "NearDuplicates":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, text: str) -> None:
        """Take in a text; its number is how many were before it."""
        own = shingles(text)
        if len(self.shared):
            at = np.minimum(np.searchsorted(self.shared, own), len(self.shared) - 1)
            own = own[self.shared[at] != own]
        self.file.write(own.tobytes())
        self.starts.append(self.starts[-1] + len(own))
        self.texts.append(number_of(text))
        self.values.append(number_of(" ".join(numbers(text))))
        self.keys.frombytes(self._keys(own, self.values[-1]).tobytes())

    def _keys(self, own: Hashes, value: int) -> Hashes:
        """A number for each band of the signature, (bands,), and of the words with digits, which must be equal, too."""
        if not len(own):
            return np.zeros(self.bands, np.uint32)
        signature = (own[:, None] * self.factors + self.terms).min(axis=0) >> np.uint64(32)
        banded = signature[: self.bands * self.rows].reshape(self.bands, self.rows)
        mixed = banded[:, 0]
        for row in range(1, self.rows):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + banded[:, row]
        mixed = (mixed ^ np.uint64(value)) * np.uint64(0xBF58476D1CE4E5B9)
        keys: Hashes = (mixed >> np.uint64(32)).astype(np.uint32)
        return keys

    def clusters(self, progress: Progress | None = None) -> NDArray[np.int64]:
        """A cluster number for each text, in order: the number of one of its texts."""
        self.file.flush()
        _, firsts, same = np.unique(np.frombuffer(self.texts, np.uint64), return_index=True, return_inverse=True)
        keys = np.frombuffer(self.keys, np.uint32).reshape(-1, self.bands)
        sizes = np.diff(np.frombuffer(self.starts, np.uint64).astype(np.int64))
        compared = firsts[sizes[firsts] > 0]
        parent = array("q", range(len(self.texts)))
        for band in range(self.bands):
            for run in _runs(compared, keys[compared, band]):
                self._join(run, parent)
            if progress:
                progress(band + 1, self.bands, "near duplicates")
        return np.array([root(parent, int(first)) for first in firsts], np.int64)[same]

    def _join(self, run: list[int], parent: "array[int]") -> None:
        """Unite those of a run that are near duplicates, each compared with the first of each group."""
        heads: list[int] = []
        for i in run:
            near = next((j for j in heads if root(parent, i) == root(parent, j) or self._near(i, j)), None)
            if near is None:
                heads = [*heads[-HEADS + 1 :], i]
            else:
                parent[root(parent, i)] = root(parent, near)

    def _near(self, i: int, j: int) -> bool:
        if self.values[i] != self.values[j]:
            return False
        m, n = (self.starts[k + 1] - self.starts[k] for k in (i, j))
        if min(m, n) < self.threshold * max(m, n):
            return False
        shared = len(np.intersect1d(self._shingles(i), self._shingles(j), assume_unique=True))
        return shared >= self.threshold * (m + n - shared)

    def _shingles(self, i: int) -> Hashes:
        start, end = self.starts[i], self.starts[i + 1]
        return np.frombuffer(os.pread(self.file.fileno(), 4 * (end - start), 4 * start), np.uint32)


def _runs(names: NDArray[np.int64], keys: Hashes) -> Iterator[list[int]]:
    """The names that share a key, where several do."""
    order = np.argsort(keys, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(keys[order])) + 1, len(order))
    start = 0
    for end in ends.tolist():
        if end - start > 1:
            yield names[order[start:end]].tolist()
        start = end


def rows_of(threshold: float) -> int:
    """Rows of a band: as many as leave the recall at the threshold."""
    fitting = (
        rows for rows in range(1, 17) if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= RECALL
    )  # fmt: skip
    return max(fitting, default=1)


def root(parent: "array[int]", i: int) -> int:
    """The representative of `i` in a union-find forest."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def shingles(text: str) -> Hashes:
    """5-character pieces of the words, case and punctuation left out, as sorted distinct numbers of 32 bits."""
    found = words(text)
    plain = f" {' '.join(found)} " if found else text
    points = np.frombuffer(plain.ljust(SHINGLE).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(points) - SHINGLE + 1
    mixed = points[:count]
    for i in range(1, SHINGLE):
        mixed = mixed * np.uint64(0x100000001B3) + points[i : i + count]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def numbers(text: str) -> list[str]:
    """The words with a digit in them, sorted: order numbers, dates, amounts."""
    return sorted(NUMBER.findall(text.lower()))


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())
