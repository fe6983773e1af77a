"""Batches, stored completions and training lines, in the shapes of OpenAI's API reference and guides."""

import gzip
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources import jsonl
from tasks.sources.jsonl import JSONL
from tests.tasks.test_ingest import count

KINDS = ("interactions", "feedback", "duplicates", "quarantined")
LOGPROBS = {"content": [{"token": "4", "logprob": -0.25, "bytes": [52], "top_logprobs": []}], "refusal": None}


# "The request input object" and "The request output object", API reference, Batch.
def asked(name: str, question: str = "What is 2+2?") -> dict[str, Any]:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": question}]
    body = {"model": "gpt-4o-mini", "messages": messages, "logprobs": True}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def answered(name: str, said: str = "2 + 2 equals 4.", completion: str = "") -> dict[str, Any]:
    message = {"role": "assistant", "content": said, "refusal": None}
    body = {
        "id": completion or f"chatcmpl-{name}", "object": "chat.completion", "created": 1711475054,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "logprobs": LOGPROBS, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 15, "total_tokens": 39}, "system_fingerprint": None,
    }  # fmt: skip
    response = {"status_code": 200, "request_id": "req_c187b3", "body": body}
    return {"id": "batch_req_wnaDys", "custom_id": name, "response": response, "error": None}


# Guide "Batch API", section Batch expiration, and the error that a request alone would have got.
EXPIRED = {
    "id": "batch_req_123", "custom_id": "r-1", "response": None,
    "error": {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    },
}  # fmt: skip
REFUSED = {
    "id": "batch_req_124", "custom_id": "r-2", "error": None,
    "response": {"status_code": 400, "request_id": "req_1", "body": {"error": {"message": "too long", "code": None}}},
}  # fmt: skip
BROKEN = {"custom_id": "r-3", "response": {"status_code": 500, "message": "Internal Server Error"}, "error": None}

# API reference, Chat Completions: "List Chat Completions" and "Get chat messages".
STORED = {
    "object": "chat.completion", "id": "chatcmpl-AyPNinnUqUDYo9SAdA52NobMflmj2", "model": "gpt-4o-2024-08-06",
    "created": 1738960610, "request_id": "req_ded8ab984ec4bf840f37566c1011c417", "tool_choice": None,
    "usage": {"total_tokens": 31, "completion_tokens": 18, "prompt_tokens": 13}, "seed": 4944116822809979520,
    "top_p": 1.0, "temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "system_fingerprint": "fp_50cad350e4", "input_user": None, "service_tier": "default", "tools": None,
    "metadata": {"workload": "haikus", "session_id": "s-1"}, "response_format": None,
    "choices": [
        {
            "index": 0, "finish_reason": "stop", "logprobs": LOGPROBS,
            "message": {
                "content": "Mind of circuits hum", "role": "assistant", "tool_calls": None, "function_call": None,
            },
        }
    ],
}  # fmt: skip


def message(number: int, content: str | None, role: str = "user", parts: Any = None) -> dict[str, Any]:
    return {
        "id": f"{STORED['id']}-{number}", "role": role, "content": content, "name": None, "content_parts": parts,
    }  # fmt: skip


def page(*data: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {
        "object": "list", "data": list(data), "first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": more,
    }  # fmt: skip


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(*paths: Path, **options: Any) -> tuple[int, ...]:
    """How many became what; every row is accounted for."""
    counts = ingest(JSONL(tuple(map(str, paths)), **{"workload": "w", **options}))
    assert counts["rows"] == sum(counts[kind] for kind in KINDS)
    return tuple(counts[kind] for kind in KINDS)


def interactions() -> list[Interaction]:
    with session(write=False) as db:
        return list(db.scalars(select(Interaction).order_by(Interaction.external_id)))


def reasons() -> list[str]:
    with session(write=False) as db:
        return list(db.scalars(select(Quarantine.reason)))


@pytest.mark.parametrize("names", [("in.jsonl", "out.jsonl"), ("z.jsonl.gz", "a.jsonl"), ("z.jsonl", "a.jsonl.gz")])
def test_a_batch_is_its_input_and_its_output_in_any_order(home: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    inputs = write(tmp_path / names[0], *(asked(f"r-{n}", f"question {n}") for n in range(5)))
    outputs = write(tmp_path / names[1], *(answered(f"r-{n}", f"answer {n}") for n in (3, 0, 4)))
    for paths in ((inputs, outputs), (outputs, inputs), (tmp_path,)):
        assert read(*paths) == ((3, 0, 0, 0) if paths[0] is inputs else (0, 0, 3, 0))
    first = interactions()[0]
    assert first.external_id == "chatcmpl-r-0" and first.request["messages"][1]["content"] == "question 0"
    assert first.response["choices"][0]["message"]["content"] == "answer 0"
    assert first.response["choices"][0]["logprobs"] == LOGPROBS
    assert (first.model, first.prompt_tokens, first.at.year) == ("gpt-4o-mini", 24, 2024)


def test_what_failed_or_expired_is_a_call_with_an_error(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *(asked(f"r-{n}") for n in range(4)))
    write(tmp_path / "errors.jsonl", EXPIRED, REFUSED, BROKEN)
    assert read(tmp_path) == (3, 0, 0, 0)
    errors = [row.response["error"] for row in interactions()]
    assert {error.get("code") or error["message"] for error in errors} == {
        "batch_expired", "too long", "Internal Server Error",
    }  # fmt: skip


def test_an_output_without_its_input_waits_in_quarantine_until_both_are_read(home: Path, tmp_path: Path) -> None:
    outputs = write(tmp_path / "out.jsonl", answered("r-0"), answered("r-1"))
    with pytest.raises(SetupError, match="custom_id 'r-0' is in no file here; read the batch's input file together"):
        read(outputs)
    inputs = write(tmp_path / "in.jsonl", asked("r-0"))
    with pytest.raises(SetupError, match=r"in\.jsonl' is the input of a batch, .*; give the batch's output"):
        read(inputs)
    assert count(Quarantine) == 2
    assert read(inputs, outputs) == (1, 0, 0, 1)
    write(tmp_path / "in.jsonl", asked("r-0"), asked("r-1"))
    with session(write=False) as db:
        kept = db.scalars(select(Quarantine)).one()
    (again,) = JSONL((str(tmp_path),), workload="w").parse(kept.raw, kept.created)
    assert again.row is not None and again.row.external_id == "chatcmpl-r-1" and again.raw == kept.raw
    assert read(inputs, outputs) == (1, 0, 1, 0) and not count(Quarantine)


def test_an_output_that_grew_is_read_on(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.jsonl", *(asked(f"r-{n}", f"question {n}") for n in range(4)))
    write(tmp_path / "out.jsonl", answered("r-0"), answered("r-1"))
    assert read(tmp_path) == (2, 0, 0, 0)
    write(tmp_path / "out.jsonl", *(answered(f"r-{n}") for n in range(4)))
    seen = []
    joined = jsonl.call
    monkeypatch.setattr(jsonl, "call", lambda record, *more: seen.append(record["custom_id"]) or joined(record, *more))
    assert read(tmp_path) == (2, 0, 2, 0)
    assert [name for name in seen if name in ("r-2", "r-3")] and len(seen) == 4 + 2  # the input's lines, and two


def test_batches_that_use_the_same_names_are_told_apart_by_their_folders(home: Path, tmp_path: Path) -> None:
    for batch in ("a", "b"):
        write(tmp_path / batch / "in.jsonl", asked("request-1", f"question {batch}"), asked("same"))
        write(tmp_path / batch / "out.jsonl", answered("request-1", f"answer {batch}", completion=batch))
    assert read(tmp_path) == (2, 0, 0, 0)
    for row in interactions():
        assert row.request["messages"][1]["content"] == f"question {row.external_id}"
    write(tmp_path / "out.jsonl", answered("request-1", completion="c"), answered("same", completion="d"))
    assert read(tmp_path) == (1, 0, 2, 1)
    assert "is the name of different requests in" in reasons()[0] and str(tmp_path / "b" / "in.jsonl") in reasons()[0]


def test_a_large_batch_needs_no_memory(tmp_path: Path) -> None:
    rows, long = 4000, "x" * 10_000
    with (tmp_path / "in.jsonl").open("w") as file:
        for n in range(rows):
            file.write(json.dumps(asked(f"r-{n}", long)) + "\n")
    outputs = write(tmp_path / "out.jsonl", *(answered(f"r-{n}") for n in reversed(range(rows))))
    inputs, _ = parts = JSONL((str(tmp_path),), workload="w").parts()
    assert parts[1].path == outputs and inputs.size > 40_000_000
    before = psutil.Process().memory_info().rss
    assert sum(1 for entry in parts[1].read(None) if entry.row is not None) == rows
    assert psutil.Process().memory_info().rss - before < 25_000_000
    assert list(inputs.read(None)) == []


@pytest.mark.parametrize(
    "lines",
    [
        [{**STORED, "messages": [message(0, "write a haiku about ai")]}],
        [STORED, page(message(0, "write a haiku about ai"))],
        [message(0, "write a haiku about ai"), STORED],
        [page(STORED), page(message(0, "write a haiku about ai"))],
        [page(STORED), page(message(0, "write a haiku about ai"), message(1, "Mind of circuits hum", "assistant"))],
    ],
    ids=["on its line", "a page of messages", "a message a line", "a page of completions", "with the answer"],
)
def test_a_stored_completion_is_joined_with_its_messages(home: Path, tmp_path: Path, lines: list[Any]) -> None:
    write(tmp_path / "a.jsonl", *lines)
    assert read(tmp_path, workload="") == (1, 0, 0, 0)
    (row,) = interactions()
    assert (row.external_id, row.workload, row.conversation) == (STORED["id"], "haikus", "s-1")
    assert row.request["messages"] == [{"role": "user", "content": "write a haiku about ai"}]
    assert row.request["temperature"] == 1.0 and row.response["choices"][0]["logprobs"] == LOGPROBS
    assert row.prompt_tokens == 13 and row.at.year == 2025


def test_messages_in_parts_and_over_several_pages_are_one_request(home: Path, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "and this"}]
    first = page(message(0, "be kind", "system"), message(1, "write"), more=True)
    write(tmp_path / "a.jsonl", page(STORED), first)
    with pytest.raises(SetupError, match="message 2 of completion"):
        read(tmp_path)
    write(tmp_path / "b.jsonl", page(message(2, None, parts=parts)))
    assert read(tmp_path) == (1, 0, 0, 0) and not count(Quarantine)
    assert interactions()[0].request["messages"] == [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "write"},
        {"role": "user", "content": parts},
    ]  # fmt: skip


def test_a_completion_without_its_messages_does_not_stop_the_others_of_its_page(home: Path, tmp_path: Path) -> None:
    other = {**STORED, "id": "chatcmpl-2"}
    write(tmp_path / "a.jsonl", page(other, STORED), message(0, "write"))
    assert read(tmp_path) == (1, 0, 0, 1)
    assert "the messages of completion 'chatcmpl-2' are in no file here" in reasons()[0]
    write(tmp_path / "b.jsonl", {**message(0, "write"), "id": "chatcmpl-2-0"})
    assert read(tmp_path) == (1, 0, 1, 0) and not count(Quarantine)


# Guide "Supervised fine-tuning", section Formatting your data.
TRAINING: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What is the weather in San Francisco?"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "call_id", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
            ],
        },
    ],
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
}


def test_a_training_line_is_a_call_with_its_last_message_as_the_answer(home: Path, tmp_path: Path) -> None:
    named = {**TRAINING, "id": "t-1", "workload_id": "weather", "timestamp": 1756684873}
    write(tmp_path / "a.jsonl", TRAINING, named)
    assert read(tmp_path) == (2, 0, 0, 0) and read(tmp_path) == (0, 0, 2, 0)
    row = next(row for row in interactions() if row.external_id == "t-1")
    assert (row.workload, len(row.request["messages"]), row.request["tools"]) == ("weather", 1, TRAINING["tools"])
    assert row.response["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": TRAINING["messages"][:1]}, "the last message is of role 'user'"),
        ({"messages": TRAINING["messages"][1:]}, "request has no messages"),
        ({"messages": [*TRAINING["messages"][:1], {"role": "assistant", "content": "a", "weight": 0}]}, "weight 0"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": ["a"]}, "not a list of messages"),
        ({"custom_id": "r", "response": None, "error": None}, "neither a response nor an error"),
        ({"choices": [{"message": {"content": "a"}}]}, "neither its messages nor an id"),
        ({**STORED, "messages": "hello"}, "messages is text"),
        ({"object": "list", "data": [1]}, "a record is a number"),
    ],
)
def test_a_line_that_is_no_call_has_a_reason(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    (part,) = JSONL((str(write(tmp_path / "a.jsonl", line)),), workload="w").parts()
    (entry,) = part.read(None)
    assert entry.row is None and said in entry.reason
