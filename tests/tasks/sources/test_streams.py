"""Streams of chunks: in order, mixed, cut off, and growing. The chunks are those of OpenAI's API reference."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Cursor, Quarantine
from tasks.sources import streams
from tasks.sources.jsonl import JSONL
from tasks.sources.part import Entry
from tests.tasks.sources.test_openai import interactions, read, reasons
from tests.tasks.test_ingest import count

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def chunk(name: str, delta: dict[str, Any], end: str | None = None, index: int = 0) -> dict[str, Any]:
    token = delta.get("content")
    logprobs = {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []}]} if token else None
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}
    return {
        "id": name, "object": "chat.completion.chunk", "created": 1694268190, "model": "gpt-4o-mini",
        "system_fingerprint": "fp_44709d6fcb", "choices": [choice],
    }  # fmt: skip


def stream(name: str, *words: str, usage: bool = True) -> list[dict[str, Any]]:
    """The chunks of an answer; the usage is a chunk of its own, as with `stream_options.include_usage`."""
    first = chunk(name, {"role": "assistant", "content": ""})
    used = {**first, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 9}}
    said = [chunk(name, {"content": word}) for word in words]
    return [first, *said, chunk(name, {}, "stop"), *([used] if usage else [])]


def request(name: str) -> dict[str, Any]:
    return {"id": name, "request": ASKED}


def with_request(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"workload_id": "w", "request": ASKED, "chunk": each} for each in chunks]


def events(*records: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(record)}\n\n" for record in records)


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def mixed(*several: list[Any], seed: int = 0) -> list[Any]:
    """Lists put together at random, each in its order."""
    rest, rng, out = [list(each) for each in several], random.Random(seed), []
    while rest := [each for each in rest if each]:
        out.append(rng.choice(rest).pop(0))
    return out


def said() -> dict[str, str]:
    return {row.external_id: row.response["choices"][0]["message"]["content"] for row in interactions()}


@pytest.mark.parametrize(
    "content",
    [
        lines(*with_request(*stream("c-1", "Hel", "lo"))),
        lines(request("c-1"), *stream("c-1", "Hel", "lo")),
        lines(*stream("c-1", "Hel", "lo"), request("c-1")),
        ": keep-alive\n\n" + events(*with_request(*stream("c-1", "Hel", "lo"))) + "data: [DONE]\n\n",
        lines(with_request(stream("c-1")[0])[0], *stream("c-1", "Hel", "lo")[1:]),
    ],
    ids=["with each chunk", "before", "after", "events", "with the first chunk"],
)
def test_a_stream_is_one_call(home: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert read(tmp_path) == (1, 0, 0, 0) and said() == {"c-1": "Hello"}
    (row,) = interactions()
    assert row.request["messages"] == ASKED["messages"] and row.prompt_tokens == 7
    tokens = row.response["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["Hel", "lo"] and row.at.year == 2023
    assert read(tmp_path) == (0, 0, 1, 0)


@pytest.mark.parametrize("held", [3, 10, 100])
@pytest.mark.parametrize("usage", [True, False])
def test_streams_at_the_same_time_are_told_apart(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, usage: bool
) -> None:
    monkeypatch.setattr(streams, "HELD", held)
    several = [[request(f"c-{n}"), *stream(f"c-{n}", f"answer {n}", "!", usage=usage)] for n in range(40)]
    (tmp_path / "a.jsonl").write_text(lines(*mixed(*several)))
    assert read(tmp_path) == (40, 0, 0, 0)
    assert said() == {f"c-{n}": f"answer {n}!" for n in range(40)}
    assert {row.prompt_tokens for row in interactions()} == {7 if usage else None}
    assert read(tmp_path) == (0, 0, 40, 0)


def test_several_choices_and_tool_calls_are_put_together(home: Path, tmp_path: Path) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "track", "arguments": ""}}
    parts = [
        chunk("c-1", {"role": "assistant", "tool_calls": [call]}), chunk("c-1", {"role": "assistant"}, index=1),
        chunk("c-1", {"tool_calls": [{"index": 0, "function": {"arguments": '{"id"'}}]}),
        chunk("c-1", {}, "stop", 1), chunk("c-1", {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
        chunk("c-1", {}, "tool_calls"),
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text(lines(*with_request(*parts)))
    assert read(tmp_path) == (1, 0, 0, 0)
    one, two = interactions()[0].response["choices"]
    assert one["message"]["tool_calls"][0]["function"] == {"name": "track", "arguments": '{"id": 1}'}
    assert (one["finish_reason"], two["finish_reason"]) == ("tool_calls", "stop")


def test_a_stream_whose_request_is_nowhere_lies_in_quarantine_with_all_its_lines(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(*stream("c-1", "Hello"), request("c-2"), *stream("c-2", "hi")))
    assert read(tmp_path) == (1, 0, 0, 1)
    assert "the request of stream 'c-1' is nowhere; log it with the chunks" in reasons()[0]
    with session(write=False) as db:
        kept = db.scalars(select(Quarantine)).one()
    assert kept.raw.decode() + "\n" == lines(*stream("c-1", "Hello"))
    (again,) = JSONL((str(tmp_path),)).parse(kept.raw, kept.created)
    assert again.raw == kept.raw and "is nowhere" in again.reason


def test_a_stream_cut_off_by_the_end_of_the_file_is_whole_when_the_file_has_grown(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    records = [*with_request(*stream("c-0", "first")), *with_request(*stream("c-1", "Hel", "lo"))]
    whole = lines(*records)
    read_before = 1
    for end in range(len(lines(*records[:5])), len(whole), 150):
        file.write_text(whole[:end])
        counts = read(tmp_path)
        assert counts[0] + counts[2] == read_before or said() == {"c-0": "first", "c-1": "Hello"}
        read_before = max(read_before, counts[0] + counts[2])
    file.write_text(whole)
    read(tmp_path)
    assert said() == {"c-0": "first", "c-1": "Hello"}
    assert [reason for reason in reasons() if "breaks off" in reason] == []
    assert read(tmp_path)[:3] == (0, 0, 2)


def test_a_file_that_grows_is_read_from_where_no_stream_was_open(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    first = lines(*with_request(*stream("c-1", "one")))
    file.write_text(first)
    assert read(tmp_path) == (1, 0, 0, 0)
    with session(write=False) as db:
        position = db.scalars(select(Cursor.position)).one()
    assert (position["offset"], position["line"], position["rows"]) == (len(first), 4, 1)
    file.write_text(first + lines(*with_request(*stream("c-2", "two"))))
    (part,) = JSONL((str(file),), workload="w").parts()
    assert [entry.row.external_id for entry in part.read(position) if entry.row] == ["c-2"]


def test_no_position_lies_within_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELD", 1)
    several = [[request(f"c-{n}"), *stream(f"c-{n}", *"abc")] for n in range(12)]
    file = tmp_path / "a.jsonl"
    records = mixed(*several[:4]) + mixed(*several[4:8]) + [request("never")] + mixed(*several[8:])
    file.write_text(lines(*records))
    found = entries(file)
    assert len(found) == 13 and len({entry.row.external_id for entry in found if entry.row}) == 12
    reached = [entry.position for entry in found if entry.position]
    assert reached
    for position in reached:
        assert len(entries(file, position)) == 13 - position["rows"]


def entries(path: Path, position: dict[str, Any] | None = None) -> list[Entry]:
    (part,) = JSONL((str(path),), workload="w").parts()
    return list(part.read(position))


@given(st.lists(st.sampled_from(["stream", "half", "line", "junk", "done"]), max_size=30), st.integers(0, 99))
def test_every_line_is_in_one_block_whatever_there_is(kinds: list[str], seed: int) -> None:
    import hashlib
    import io

    made = {"line": [{"record_id": "1"}], "junk": ["no json"], "done": ["data: [DONE]"]}
    several = [
        stream(f"c-{n}", "a")[: 2 if kind == "half" else 9] if kind in ("stream", "half") else made[kind]
        for n, kind in enumerate(kinds)
    ]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in mixed(*several, seed=seed)]
    content = "".join(text + "\n" for text in texts).encode()
    before = hashlib.sha256()
    found = list(streams.blocks(io.BytesIO(content), before))
    assert sorted(b"\n".join(block.raw for block in found).split(b"\n")) == sorted(
        content.removesuffix(b"\n").split(b"\n")
    )
    assert sum(block.size for block in found) == len(content) and before.digest() == hashlib.sha256(content).digest()
    assert not found or found[-1].ended == ("half" not in kinds)


def test_a_log_of_streams_is_known_behind_a_long_prompt(home: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 200_000}]}
    first, *rest = stream("c-1", "Hello")
    (tmp_path / "a.jsonl").write_text(lines({"request": long, "chunk": first}, *rest))
    assert read(tmp_path) == (1, 0, 0, 0)


def test_a_chunk_in_a_log_of_other_records_has_a_reason(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        lines({"request": ASKED, "response": stream("c-1", "Hello")}, *stream("c-2", "a"))
    )
    (tmp_path / "b.jsonl").write_text('{"record_id": "c-1", "kind": "thumb", "value": 1}\n' + "x" * 2_000_000 + "\n")
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write(lines(with_request(stream("c-3")[0])[0]))
    assert read(tmp_path) == (1, 1, 0, 3)
    assert sorted(reason[:30] for reason in reasons())[1:] == [
        "stream 'c-3' breaks off: it ha", "the request of stream 'c-2' is",
    ]  # fmt: skip


def test_streams_that_were_given_up_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST_OPEN", 100_000)
    records = []
    for n in range(300):
        records += with_request(*stream(f"gone-{n}", "a", "b"))[:3] + with_request(*stream(f"c-{n}", "a", "b"))
    file = tmp_path / "a.jsonl"
    file.write_text(lines(*records))
    found = entries(file)
    assert sum(1 for entry in found if entry.row) == 300 == sum(1 for entry in found if "breaks off" in entry.reason)
    with file.open("rb") as opened:
        import hashlib

        sizes = [block.size for block in streams.blocks(opened, hashlib.sha256())]
    assert max(sizes) < 150_000


def test_what_says_nothing_is_no_row(home: Path, tmp_path: Path) -> None:
    azure = {
        "choices": [], "created": 0, "id": "", "model": "", "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
    }  # fmt: skip
    late = stream("c-0", "a")[-1]
    (tmp_path / "a.jsonl").write_text(lines(azure, late, *with_request(*stream("c-1", "Hello"))))
    assert read(tmp_path) == (1, 0, 0, 0) and not count(Quarantine)


def test_an_id_that_comes_again_is_another_stream(home: Path, tmp_path: Path) -> None:
    later = [{**each, "created": 1694268200} for each in stream("x", "two")]
    (tmp_path / "a.jsonl").write_text(lines(*with_request(*stream("x", "one"), *later)))
    assert read(tmp_path) == (1, 0, 0, 1)
    assert said() == {"x": "one"} and "is that of another record" in reasons()[0]
