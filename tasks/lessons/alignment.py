"""Two tokenizers: where they differ, and a lesson across them, the likelihood of the same pieces of text.

Token by token, distributions of two vocabularies cannot be compared. But where both tokenizers begin a token at the
same character, after the same text, both models have said how likely the text up to the next such place is: the
product of their tokens' probabilities. That text against any other is a distribution over two outcomes, which both
models share, and the divergence of those is the lesson: approximate likelihood matching (Minixhofer et al. 2025,
"Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching"), here by `divergences.with_rest` of k = 1.

    loss of a piece = D( {p(piece), 1 − p(piece)}, {q(piece), 1 − q(piece)} ),  on the piece's first token

It says how sure the teacher is of what it wrote, and nothing of what else it might have written. Universal logit
distillation (Boizard et al. 2024; TRL's GOLD, which merges tokens to positions) compares sorted probabilities, whatever
tokens they belong to. At the shop, with a teacher of 723 of the seedling's 4,096 tokens, the validation loss after the
first epoch was 0.194 with this lesson, 0.194 by imitation, and 0.225 with ULD at the places where both begin a token
(its weight 1.5; one run each): no reason to follow a teacher across tokenizers before it is measured on one's own data.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.training.examples import Example, lengths

if TYPE_CHECKING:
    from torch import Tensor


def difference(ours: Any, theirs: Any) -> str | None:
    """What makes two vocabularies two, naming both; None where they are one."""
    mine, other = ({number: token for token, number in t.get_vocab().items()} for t in (ours, theirs))
    if mine == other:
        return None
    first = next(n for n in range(max(*mine, *other) + 1) if mine.get(n) != other.get(n))
    return (
        f"the teacher's vocabulary has {len(other):,} tokens and the student's {len(mine):,}, "
        f"and the first to differ is number {first}: {other.get(first)!r} and {mine.get(first)!r}"
    )


class Pieces(NamedTuple):
    """The m pieces of one answer, or of a batch's, and what the teacher says of them.

    Attributes:
        piece: Of each of our n answer tokens the number of its piece, or -1; long [n].
        first: The token that each begins with, long [m].
        logp: The teacher's log-probability of each, float32 [m].
    """

    piece: "Tensor"
    first: "Tensor"
    logp: "Tensor"


def starts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, dict[int, int]]:
    """The text of some tokens, and which token begins after how many characters.

    By decoding each beginning: offsets of a tokenizer's own leave out the space before a word. A token that begins
    within a character has none.
    """
    texts = tokenizer.batch_decode([list(ids[:n]) for n in range(len(ids) + 1)], clean_up_tokenization_spaces=False)
    whole: str = texts[-1]
    return whole, {len(text): n for n, text in enumerate(texts[:-1]) if whole.startswith(text)}


def shared(ours: Any, theirs: Any, mine: Sequence[int], other: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The pieces of two answers that are the same text: (first, end) in our tokens and in theirs."""
    (text, here), (their_text, there) = starts(ours, mine), starts(theirs, other)
    same = next(
        (n for n, (a, b) in enumerate(zip(text, their_text, strict=False)) if a != b), min(len(text), len(their_text))
    )
    places = sorted(place for place in here.keys() & there.keys() if place <= same)
    found = [(here[a], here[b], there[a], there[b]) for a, b in pairwise(places)]
    if places and mine[here[places[-1]]] == ours.eos_token_id and other[there[places[-1]]] == theirs.eos_token_id:
        end, their_end = here[places[-1]], there[places[-1]]
        found.append((end, end + 1, their_end, their_end + 1))  # whatever each calls it, both say that this is all
    return found


def pieces_of(
    spans: Sequence[tuple[int, int, int, int]], length: int, logp: "Tensor", its_own: "Tensor"
) -> Pieces | None:
    """The pieces that are the teacher's own of an answer of `length` of our tokens; None where there are none.

    Args:
        logp: What the teacher says of its n' tokens of the answer, float32 [n'].
        its_own: Whether it would have said each, bool [n'] (`top_k.py`).
    """
    import torch

    spans = [span for span in spans if its_own[span[2] : span[3]].all()]
    if not spans:
        return None
    piece = torch.full((length,), -1)
    for number, (first, end, _, _) in enumerate(spans):
        piece[first:end] = number
    return Pieces(piece, torch.tensor([s[0] for s in spans]), torch.stack([logp[a:b].sum() for _, _, a, b in spans]))


def side_by_side(group: Sequence[Example], known: dict[int, Pieces]) -> Pieces:
    """The pieces of a batch's answers, one after the other; none where the teacher is not followed."""
    import torch

    nothing = torch.zeros(0, dtype=torch.long)
    parts: list[Pieces] = []
    tokens = pieces = 0
    for e, length in zip(group, lengths(group).tolist(), strict=True):
        one = known.get(e.row) if e.follow else None
        one = one or Pieces(torch.full((length,), -1), nothing, nothing.float())
        parts.append(Pieces(torch.where(one.piece < 0, -1, one.piece + pieces), one.first + tokens, one.logp))
        tokens, pieces = tokens + length, pieces + len(one.logp)
    return Pieces(*(torch.cat(part) for part in zip(*parts, strict=True)))
