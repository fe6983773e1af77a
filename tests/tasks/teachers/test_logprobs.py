"""A teacher's log-probabilities, from an endpoint to a student's tensors, with the seedling's real tokenizer.

The oracle is the whole distribution that the endpoint took its top k from.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.engines.chat import load_tokenizer
from infra.settings import SEEDLING
from tasks.lessons.divergences import at_tokens, diverge
from tasks.teachers.logprobs import compact, top_k_of
from tasks.training.examples import encode
from tests.tasks.teachers.server import said, serving, teacher
from tests.tasks.teachers.test_openai import questions

TEXTS = ["lost_card", "Grüße! 🙂 Your order 48213 is on its way.", " two\n\nlines, and a <|system|>", "日本"]
K = 20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SEEDLING / "student")


class Row(NamedTuple):
    """An answer in the student's tokens, the teacher's whole distribution over it, and the choice that it comes in."""

    ids: list[int]
    prompt: int
    whole: torch.Tensor
    choice: dict[str, Any]


def bytes_of(tokenizer: Any, number: int) -> bytes:
    """Found without the code under test: by what the tokenizer makes of the token between two others."""
    name = tokenizer.convert_ids_to_tokens(number)
    if number in tokenizer.all_special_ids or name in tokenizer.get_added_vocab():
        return name.encode()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(letters[letter] for letter in name)


def row_of(tokenizer: Any, text: str, k: int = K, seed: int = 0, with_bytes: bool = True) -> Row:
    """What a teacher with the student's tokenizer answers, in OpenAI's shape, and thinks of it."""
    asked = [{"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": text}
    row = {"messages": asked, "tools": None, "expected": answer, "weight": 1.0, "origin": "logged"}
    [example] = encode(tokenizer, [row], 1024)
    written = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert example.ids[example.prompt : -1] == written and example.ids[-1] == tokenizer.eos_token_id
    generator = torch.Generator().manual_seed(seed)
    whole = (3 * torch.randn(len(written), len(tokenizer), generator=generator)).log_softmax(-1)
    content = []
    for position, number in enumerate(written):
        values, ids = whole[position].topk(k)
        shown = [(number, whole[position, number].item()), *zip(ids.tolist(), values.tolist(), strict=True)]
        entries = []
        for one, value in shown:
            spelled = bytes_of(tokenizer, one)
            entry = {"token": spelled.decode(errors="replace"), "logprob": value}
            entries.append({**entry, "bytes": list(spelled) if with_bytes else None})
        content.append({**entries[0], "top_logprobs": entries[1:]})
    choice = {"message": answer, "logprobs": {"content": content, "refusal": None}}
    return Row(example.ids, example.prompt, whole, choice)


@pytest.mark.parametrize("text", TEXTS)
def test_what_an_endpoint_thinks_is_what_the_student_follows(home: Path, tokenizer: Any, text: str) -> None:
    row = row_of(tokenizer, text)
    with serving(lambda *_: said(text, logprobs=row.choice["logprobs"])) as endpoint:
        [answer] = teacher(endpoint, logprobs=K).answer(questions(1))
        assert (endpoint.asked[0]["logprobs"], endpoint.asked[0]["top_logprobs"]) == (True, K)
    assert answer.logprobs is not None
    found = top_k_of(answer.logprobs, tokenizer, row.ids, row.prompt)
    assert not isinstance(found, str), found
    values, ids = found
    n = len(row.ids) - row.prompt
    assert values.shape == ids.shape == (n, K + 1) and (values.dtype, ids.dtype) == (torch.float16, torch.int32)
    for position, whole in enumerate(row.whole):
        best, theirs = whole.topk(K)
        written = row.ids[row.prompt + position]
        assert ids[position, :K].tolist() == theirs.tolist()
        torch.testing.assert_close(values[position, :K].float(), best, atol=6e-3, rtol=1e-3)
        if written in theirs:
            assert values[position, K] == -math.inf and ids[position, K] == 0
        else:
            assert ids[position, K] == written
            assert values[position, K].item() == pytest.approx(whole[written].item(), rel=2e-3)
    assert (values[-1] == -math.inf).all() and (ids[-1] == 0).all(), "nothing is known of the end"


def brute_force(whole: torch.Tensor, student: torch.Tensor, kept: set[int]) -> float:
    """KL over the whole vocabulary of a teacher that spreads what is left of it as the student does."""
    p, q = whole.double().exp(), student.double().exp()
    rest = torch.ones(len(p), dtype=torch.bool)
    rest[sorted(kept)] = False
    spread = p.clone()
    spread[rest] = p[rest].sum() * q[rest] / q[rest].sum()
    return (spread * (spread.log() - q.log())).sum().item()


def test_the_missing_mass_is_one_bucket_by_brute_force_over_the_vocabulary(tokenizer: Any) -> None:
    row = row_of(tokenizer, TEXTS[1])
    kept = compact(row.choice)
    assert kept is not None
    found = top_k_of(kept, tokenizer, row.ids, row.prompt)
    assert not isinstance(found, str)
    values, ids = found[0].float(), found[1].long()
    student = torch.randn(len(values), len(tokenizer), generator=torch.Generator().manual_seed(9)).log_softmax(-1)
    student.requires_grad_()
    kl = diverge("forward_kl", *at_tokens(student, values, ids))
    real = [(whole.exp() * (whole - ours)).sum().item() for whole, ours in zip(row.whole, student, strict=False)]
    for position, whole in enumerate(row.whole):
        mine = {i for i, v in zip(ids[position].tolist(), values[position].tolist(), strict=True) if v > -math.inf}
        assert kl[position].item() == pytest.approx(brute_force(whole, student[position], mine), rel=5e-3)
        assert kl[position].item() <= real[position] + 5e-3
    assert kl[-1].item() == 0
    kl.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all() and (student.grad[-1] == 0).all()


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 99))
def test_filling_up_changes_nothing(k: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole, student = (torch.randn(3, 16, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values, ids = whole.topk(k)
    filled = torch.nn.functional.pad(values, (0, more), value=-math.inf)
    padded = torch.nn.functional.pad(ids, (0, more))
    plain = diverge("forward_kl", *at_tokens(student, values, ids))
    torch.testing.assert_close(diverge("forward_kl", *at_tokens(student, filled, padded)), plain)


def test_what_vllm_says_is_read_too(tokenizer: Any) -> None:
    """No bytes of its own, the token that ended the answer at the end, and -9999 for what cannot be."""
    row = row_of(tokenizer, "on its way", with_bytes=False)
    content = row.choice["logprobs"]["content"]
    content[0]["top_logprobs"][-1]["logprob"] = -9999.0
    end = {"token": "<|end|>", "logprob": -0.01, "bytes": None, "top_logprobs": []}
    kept = compact({**row.choice, "logprobs": {"content": [*content, end]}})
    assert kept is not None and len(kept) == len(content) == len(row.ids) - row.prompt - 1
    found = top_k_of(kept, tokenizer, row.ids, row.prompt)
    assert not isinstance(found, str)
    assert found[0][0, K - 1] <= -9998 and found[0][0].isfinite().any()
    assert compact({**row.choice, "logprobs": {"content": [*content, end, end]}}) is None


def test_alternatives_that_the_student_has_not_stay_in_the_bucket(tokenizer: Any) -> None:
    first = tokenizer("lost", add_special_tokens=False)["input_ids"][0]
    piece = bytes_of(tokenizer, first).decode()
    others = [[piece, -0.5], ["unheardofword", -1.5], ["\ufffd", -2.0], [[240, 159], -3.0]]
    found = top_k_of([[piece, -0.5, others]], tokenizer, [1, first, tokenizer.eos_token_id], 1)
    assert not isinstance(found, str)
    assert found[1].tolist() == [[first], [0]] and found[0].flatten().tolist() == [-0.5, -math.inf]


def test_a_sentencepiece_vocabulary_has_other_names_for_spaces_and_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "o", "n", "▁o", "▁on", "\ufffd"]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "o"), ("▁o", "n")], unk_token="<unk>", byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    other = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", unk_token="<unk>")
    ids = other(" on\né", add_special_tokens=False)["input_ids"]
    assert [other.convert_ids_to_tokens(i) for i in ids] == ["▁on", "<0x0A>", "<0xC3>", "<0xA9>"]
    line = ["\n", -0.1, [["\ufffd", -2.6]]]
    said_so = [[" on", -0.1, [["\n", -2.5]]], line, [[195], -0.1, []], [[169], -0.1, [["<|end|>", -3.0]]]]
    found = top_k_of(said_so, other, ids, 0)
    assert not isinstance(found, str), found
    assert found[1].tolist() == [[ids[1], ids[0]], [ids[1], 0], [ids[2], 0], [1, ids[3]]]


def test_another_tokenizer_is_no_lesson_and_it_is_said_why(tokenizer: Any) -> None:
    row = row_of(tokenizer, "on its way")
    kept = compact(row.choice)
    assert kept is not None

    def why(logprobs: list[Any]) -> str:
        found = top_k_of(logprobs, tokenizer, row.ids, row.prompt)
        assert isinstance(found, str)
        return found

    assert why([["on its way", -0.1, []]]) == "a token of the teacher is none of the student's"
    letters = [[letter, -0.1, []] for letter in "on its way"]
    assert why(letters) == "the teacher cuts the answer into other tokens than the student"
    assert why([*kept, *kept]) == "the teacher cuts the answer into other tokens than the student"
    assert why([]) == "no log-probabilities"


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def entry(token: Any, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": -0.25, "top_logprobs": [], **more}


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "ab", "tool_calls": [CALL]}, [entry("ab")]),
        ({"content": None}, []),
        ({"content": "ab"}, None),
        ({"content": "ab"}, [entry("a")]),
        ({"content": "ab"}, [entry("b"), entry("a")]),
        ({"content": "ab"}, [entry("ab", logprob="x")]),
        ({"content": "ab"}, [entry("ab", logprob=0.5)]),
        ({"content": "ab"}, [entry("ab", bytes=[999])]),
        ({"content": "ab"}, [entry(None)]),
        ({"content": "ab"}, ["ab"]),
        ({"content": "ab"}, [entry("ab", top_logprobs=[{}])]),
    ],
)
def test_what_does_not_spell_the_text_is_not_kept(message: Any, content: Any) -> None:
    assert compact({"message": message, "logprobs": {"content": content}}) is None
    assert compact({"message": message, "logprobs": None}) is None


def test_pieces_of_a_character_are_kept_as_bytes() -> None:
    pieces = [entry("bytes:\\xf0\\x9f", bytes=[240, 159]), entry("\ufffd", bytes=[153, 130]), entry("")]
    kept = compact({"message": {"content": "🙂"}, "logprobs": {"content": pieces}})
    assert kept == [[[240, 159], -0.25, []], [[153, 130], -0.25, []]]
