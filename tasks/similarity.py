"""Near-duplicate requests: clusters by MinHash (Broder 1997) and locality-sensitive hashing.

Two texts are near duplicates where the sets of their 5-character shingles overlap by a Jaccard index of at least the
threshold, and every word with a digit in it is the same: "where is order 48213" and "where is order 91372" are two
tasks. MinHash finds the pairs worth a look, the index itself decides. Shingles that over half of the texts share are
the workload's template (fsi_news carries 3 kB of instructions in front of each headline) and are left out. Words as
shingles were tried: on snips they chain "What's the weather like in Topock" to the whole gazetteer.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

Progress = Callable[[int, int, str], None]
SHINGLE = 5
TEMPLATE_SHARE = 0.5
PERMUTATIONS = 128


def clusters(texts: Sequence[str], threshold: float, progress: Progress | None = None) -> list[int]:
    """A cluster number for each text; equal texts have the same.

    Args:
        threshold: Jaccard index from which two texts are near duplicates, in (0, 1].
    """
    from datasketch import MinHash, MinHashLSH

    unique = list(dict.fromkeys(texts))
    sets = [shingles(text) for text in unique]
    found_in = Counter(shingle for some in sets for shingle in some)
    own = [{s for s in some if found_in[s] <= max(1, len(sets) * TEMPLATE_SHARE)} for some in sets]
    values = [numbers(text) for text in unique]
    # Asked for its own threshold, the index would miss every other pair that just reaches it.
    index = MinHashLSH(threshold=0.75 * threshold, num_perm=PERMUTATIONS)
    parent = list(range(len(unique)))
    for i, some in enumerate(own):
        if some:
            sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
            sketch.update_batch([shingle.encode() for shingle in some])
            for j in index.query(sketch):
                if values[i] == values[j] and len(some & own[j]) >= threshold * len(some | own[j]):
                    parent[root(parent, i)] = root(parent, j)
            index.insert(i, sketch)
        if progress and (i % 256 == 0 or i + 1 == len(own)):
            progress(i + 1, len(own), "near duplicates")
    number = {text: root(parent, i) for i, text in enumerate(unique)}
    return [number[text] for text in texts]


def root(parent: list[int], i: int) -> int:
    """The representative of `i` in a union-find forest."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def shingles(text: str) -> set[str]:
    """5-character pieces of the words, case and punctuation left out."""
    plain = f" {' '.join(words(text))} " if words(text) else text
    return {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}


def numbers(text: str) -> list[str]:
    """The words with a digit in them, sorted: order numbers, dates, amounts."""
    return sorted(word for word in words(text) if any(c.isdigit() for c in word))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
