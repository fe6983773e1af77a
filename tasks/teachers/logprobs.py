"""What a teacher thought of each token of its answer: from an OpenAI-compatible response to the lesson's tensors.

Kept, in the database and in a dataset's column `logprobs`, is a list with one entry a token of the answer:
`[token, log-probability, [[token, log-probability], ...]]`, the token that was written and the likeliest in its place,
in natural logarithms. A token is its text, or its bytes as a list of numbers where they are no whole UTF-8. It is there
only if the tokens spell the answer's text exactly: OpenAI's log-probabilities cover the text and no calls, and vLLM's
end with the token that ended the answer, which is left off.

Distributions of another tokenizer are no lesson. `top_k_of` gives what a student can follow, or says why it cannot.
What is missing of a whole distribution is the rest: the k tokens' probabilities sum to less than 1, and what the others
have between them is one bucket (`lessons/divergences.py`). An alternative that the student has no token for stays in
that bucket, and so does one that is spelled as another (byte pieces that an endpoint shows as U+FFFD). Where nothing is
known of a position (behind the text: the end of the answer), all of it is the bucket, and nothing is followed.

Endpoints give the distribution of their own choice: vLLM's is that of the model before temperature and penalties
(`logprobs_mode="raw_logprobs"`), and has -9999 for what cannot be.
"""

import math
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

REPLACEMENT = "\ufffd"
DIGITS = 4  # of a natural logarithm: float16 keeps fewer
NEWLINE_IN_BYTES = "Ċ"  # what byte-level vocabularies (GPT-2's) call the newline; each has it


def compact(choice: Mapping[str, Any]) -> list[Any] | None:
    """The log-probabilities of a response's choice, as they are kept; None where it has none for exactly its text."""
    message, said = choice.get("message"), choice.get("logprobs")
    content = said.get("content") if isinstance(said, dict) else None
    if not isinstance(content, list) or not isinstance(message, dict) or message.get("tool_calls"):
        return None
    text = message.get("content")
    if not isinstance(text, str) or not text:
        return None
    left = text.encode("utf-8", "surrogatepass")
    kept: list[Any] = []
    try:
        for number, entry in enumerate(content):
            spelled = _bytes(entry)
            if not spelled:
                continue
            if not left:
                return kept if number == len(content) - 1 else None
            if not left.startswith(spelled):
                return None
            left = left[len(spelled) :]
            others = [[_token(_bytes(other)), _logarithm(other)] for other in entry.get("top_logprobs") or ()]
            kept.append([_token(spelled), _logarithm(entry), others])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return kept if not left else None


def _bytes(entry: Mapping[str, Any]) -> bytes:
    """What a token is spelled with: its bytes if they are given, else its text."""
    given = entry.get("bytes")
    spelled: bytes = bytes(given) if isinstance(given, list) else entry["token"].encode("utf-8", "surrogatepass")
    return spelled


def _token(spelled: bytes) -> str | list[int]:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return list(spelled)


def _logarithm(entry: Mapping[str, Any]) -> float:
    value = float(entry["logprob"])
    if not math.isfinite(value) or value > 0.01:
        raise ValueError(f"{value} is no log-probability")
    return round(value, DIGITS)


def top_k_of(logprobs: list[Any], tokenizer: Any, ids: list[int], prompt: int) -> "tuple[Tensor, Tensor] | str":
    """A teacher's distribution at each answer position of a student's sequence.

    Args:
        logprobs: The column of a row, in the form above.
        tokenizer: The student's (Hugging Face).
        ids: Prompt and answer in the student's tokens.
        prompt: Length of the prompt; n = len(ids) - prompt positions follow.

    Returns:
        Log-probabilities float16 [n, k] and the student's token ids int32 [n, k], the token that was written among
        them; k is the largest number of tokens that any position of this row has. Where a position has fewer, -inf and
        id 0 fill it up; those behind the text have nothing else. Or why there is none, in a few words: the same for all
        rows of a kind, to be counted.
    """
    import torch

    if not logprobs:
        return "no log-probabilities"
    known = _ids({_hashable(token) for entry in logprobs for token in (entry[0], *(t for t, _ in entry[2]))}, tokenizer)
    written = [known.get(_hashable(entry[0])) for entry in logprobs]
    if None in written:
        return "a token of the teacher is none of the student's"
    answer = ids[prompt:]
    if written != answer[: len(written)]:
        return "the teacher cuts the answer into other tokens than the student"
    positions: list[dict[int, float]] = []
    for entry in logprobs:
        position: dict[int, float] = {}
        for token, value in (*entry[2], entry[:2]):
            number = known.get(_hashable(token))
            if number is not None:
                position.setdefault(number, value)
        positions.append(position)
    k = max(map(len, positions))
    values = torch.full((len(answer), k), -math.inf, dtype=torch.float16)
    tokens = torch.zeros((len(answer), k), dtype=torch.int32)
    for n, position in enumerate(positions):
        values[n, : len(position)] = torch.tensor(list(position.values()), dtype=torch.float16)
        tokens[n, : len(position)] = torch.tensor(list(position), dtype=torch.int32)
    return values, tokens


Token = str | tuple[int, ...]


def _hashable(token: str | list[int]) -> Token:
    return token if isinstance(token, str) else tuple(token)


def _ids(tokens: set[Token], tokenizer: Any) -> dict[Token, int]:
    """The student's ids of the tokens that it has too."""
    vocabulary, added = _vocabulary(tokenizer)
    in_bytes = NEWLINE_IN_BYTES in vocabulary
    found: dict[Token, int] = {}
    for token in tokens:
        names = [token] if isinstance(token, str) and token in added else _names(token, in_bytes)
        if name := next((name for name in names if name in vocabulary), None):
            found[token] = vocabulary[name]
    return found


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """All tokens, and those that were added and are written as they are: made anew it takes longer than a row."""
    return tokenizer.get_vocab(), tokenizer.get_added_vocab()


def _names(token: Token, in_bytes: bool) -> list[str]:
    """What a vocabulary may call a token: byte-level ones write each byte as a letter, SentencePiece's have ▁ for a
    space and <0x0A> for a byte alone."""
    if isinstance(token, str) and REPLACEMENT in token:
        return []
    spelled = token.encode() if isinstance(token, str) else bytes(token)
    if in_bytes:
        return ["".join(_letters()[byte] for byte in spelled)]
    named = [token.replace(" ", "▁")] if isinstance(token, str) else []
    return [*named, f"<0x{spelled[0]:02X}>"] if len(spelled) == 1 else named


@cache
def _letters() -> dict[int, str]:
    """GPT-2's letters for the 256 bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()
    return letters
