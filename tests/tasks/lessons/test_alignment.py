"""Pieces of text that two real tokenizers share, and the lesson across them against its definition."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.engines.chat import load_tokenizer
from infra.seedling.tokenizer import save, train
from tasks.lessons import Logits
from tasks.lessons.alignment import difference, pieces_of, shared
from tasks.lessons.imitation import imitate
from tests.tasks.lessons.toy import EXAMPLES, small_model


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Two vocabularies; the second calls the end of an answer otherwise."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = []
    for name, words in (
        ("ours", "where is order 48213 please "),
        ("theirs", "wherever orders are, the ordering pleases "),
    ):
        save(train([words * 20]), folder / name)
        found.append(load_tokenizer(folder / name))
    file = folder / "theirs" / "tokenizer_config.json"
    renamed = (folder / "theirs" / "tokenizer.json").read_text().replace(found[1].eos_token, "<|done|>")
    (folder / "theirs" / "tokenizer.json").write_text(renamed)
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<|done|>"}))
    return found[0], load_tokenizer(folder / "theirs")


def written(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_two_vocabularies_are_named_and_one_is_none(tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = tokenizers
    assert difference(ours, ours) is None
    said = difference(ours, theirs)
    assert said is not None
    assert f"{len(theirs.get_vocab()):,} tokens" in said and f"the student's {len(ours.get_vocab()):,}" in said
    mine, other = ({n: token for token, n in t.get_vocab().items()} for t in tokenizers)
    first = next(n for n in range(len(mine)) if mine[n] != other.get(n))
    assert f"number {first}: {other.get(first)!r} and {mine[first]!r}" in said


@given(st.text(alphabet="where is order 48213, pleases; äß漢🎉\n", max_size=40))
@settings(max_examples=80, deadline=None)
def test_pieces_are_the_same_text_in_both_and_leave_out_nothing(tokenizers: tuple[Any, Any], text: str) -> None:
    ours, theirs = tokenizers
    mine, other = written(ours, text), written(theirs, text)
    spans = shared(ours, theirs, mine, other)
    for first, end, their_first, their_end in spans[:-1]:
        assert ours.decode(mine[first:end]) == theirs.decode(other[their_first:their_end])
    assert [s[0] for s in spans[1:]] == [s[1] for s in spans[:-1]]
    assert (spans[0][0], spans[0][2], spans[-1][1], spans[-1][3]) == (0, 0, len(mine), len(other))
    assert (mine[spans[-1][0]], other[spans[-1][2]]) == (ours.eos_token_id, theirs.eos_token_id)


def test_pieces_are_as_short_as_both_allow(tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = tokenizers
    mine, other = (written(t, "where order 48213") for t in tokenizers)
    assert mine != other
    spans = shared(ours, theirs, mine, other)
    texts = [ours.decode(mine[a:b]) for a, b, _, _ in spans]
    ends = {len(ours.decode(mine[:n])) for n in range(len(mine))} & {
        len(theirs.decode(other[:n])) for n in range(len(other))
    }
    assert len(texts) == len(ends)


def test_answers_that_part_are_followed_as_far_as_they_agree(tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = tokenizers
    spans = shared(ours, theirs, written(ours, "order 1"), written(theirs, "order 2"))
    mine = written(ours, "order 1")
    assert "".join(ours.decode(mine[a:b]) for a, b, _, _ in spans) == "order "


def test_the_loss_is_the_two_outcome_divergence_of_each_piece() -> None:
    group = [e._replace(follow=e.row != 0) for e in EXAMPLES[:3]]
    model = small_model()
    generator = torch.Generator().manual_seed(2)
    spans = {0: [(0, 1, 0, 1)], 1: [(0, 2, 0, 1), (2, 3, 1, 4)], 2: [(1, 4, 0, 2)]}
    theirs = {row: -torch.rand(4, generator=generator) for row in spans}
    lengths = {e.row: len(e.ids) - e.prompt for e in group}
    its_own = torch.tensor([True, True, True, False])  # one piece of row 1 ends where the teacher would say otherwise
    found = {row: pieces_of(spans[row], lengths[row], theirs[row], its_own) for row in spans}
    known = {row: pieces for row, pieces in found.items() if pieces}

    expected = weights = 0.0
    for e in group:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        ours = [logp[i - 1, e.ids[i]].item() for i in range(e.prompt, len(e.ids))]
        expected += e.weight * -sum(ours)
        weights += e.weight * len(ours)
        for a, b, c, d in spans[e.row] if e.follow else []:
            if d == 4:
                continue
            p, q = math.exp(theirs[e.row][c:d].sum()), math.exp(sum(ours[a:b]))
            expected += e.weight * 0.5 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    loss = Logits(weight=0.5).toward_pieces(known)(model, group, 0.5)
    assert loss.mean.item() == pytest.approx(expected / weights, rel=1e-4)
    nothing = Logits().toward_pieces({})(model, group, 0.5)
    assert nothing.mean.item() == pytest.approx(imitate(model, group).mean.item(), rel=1e-6)
