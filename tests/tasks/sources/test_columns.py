"""What a row says, whatever types its columns have."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from infra.database.jsontext import Rejected
from infra.database.records import parse
from tasks.sources.columns import plain, records

AT = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = [{"role": "user", "content": "where is it?"}]
TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "track", "arguments": "{}"}}


def rows(**row: Any) -> list[Any]:
    return [parse(record, source="sql", at=AT, workload="w") for record in records(row)]


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "where is it?"},
        {"messages": ASKED},
        {"messages": json.dumps(ASKED)},
        {"request": {"messages": ASKED}},
        {"request": json.dumps({"messages": ASKED})},
    ],
)
@pytest.mark.parametrize(
    "answered",
    [
        {"answer": "here"},
        {"answer": {"role": "assistant", "content": "here"}},
        {"answer": json.dumps({"role": "assistant", "content": "here"})},
        {"response": {"choices": [{"index": 0, "message": {"content": "here"}}]}},
        {"response": json.dumps([{"choices": [{"index": 0, "delta": {"content": "here"}}]}])},
    ],
)
def test_every_way_to_keep_a_call_says_the_same(asked: dict[str, Any], answered: dict[str, Any]) -> None:
    (call,) = rows(id=7, timestamp="2026-01-02 03:04:05", model="big", prompt_tokens=12, **asked, **answered)
    assert (call.external_id, call.at, call.model) == ("7", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "big")
    assert call.request["messages"] == ASKED and call.prompt_tokens == 12
    assert call.response["choices"][0]["message"] == {"role": "assistant", "content": "here"}


def test_system_and_tools_are_part_of_the_request() -> None:
    tools = [{"type": "function", "function": {"name": "track"}}]
    (call,) = rows(prompt="p", system="be kind", tools=json.dumps(tools), answer={"tool_calls": [TOOL_CALL]})
    assert call.request["messages"][0] == {"role": "system", "content": "be kind"} and call.request["tools"] == tools
    assert call.response["choices"][0]["message"]["tool_calls"] == [TOOL_CALL]


@pytest.mark.parametrize("answer", ['{"intent": "refund"}', "{not json", '[{"role": "assistant"}]', "{}"])
def test_json_that_the_model_answered_with_stays_what_it_said(answer: str) -> None:
    (call,) = rows(prompt="p", answer=answer)
    assert call.response["choices"][0]["message"]["content"] == answer


def test_a_row_holds_the_call_and_what_was_thought_of_it() -> None:
    call, *said = rows(id=7, prompt="p", answer="a", thumb=True, rating=4, correction="b")
    assert [(row.kind, row.value, row.record_id) for row in said] == [
        ("thumb", 1, call.external_id), ("rating", 4.0, "7"),
        ("correction", {"role": "assistant", "content": "b"}, "7"),
    ]  # fmt: skip
    (alone,) = rows(id=7, prompt="p", answer="a", rating=None)
    assert alone.external_id == "7"


def test_feedback_finds_a_call_without_an_id_by_that_of_its_response_or_its_content() -> None:
    for response in ({"id": "chatcmpl-1"}, {}):
        call, thumb = rows(prompt="p", response={**response, "choices": [{"message": {"content": "a"}}]}, thumb=-1)
        assert thumb.record_id == call.external_id and (call.external_id == "chatcmpl-1") == bool(response)


def test_a_table_of_feedback_has_a_column_for_the_value_or_one_for_each_kind() -> None:
    kinds = {"rating": "9", "thumb": "-1", "label": "off topic", "preference": '{"chosen": "a", "rejected": "b"}'}
    said = [rows(record_id=5, kind=kind, value=value, scale="[0, 10]")[0] for kind, value in kinds.items()]
    assert [row.value for row in said][1:3] == [-1, "off topic"]
    assert said[0].value == {"value": 9.0, "scale": [0, 10]} and said[3].value["chosen"]["content"] == "a"
    both = rows(id=1, record_id=5, thumb="up", rating=2.0)
    assert len({row.external_id for row in both}) == 2 and {row.record_id for row in both} == {"5"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p"}, "there is no response"),
        ({"answer": "a"}, "request is null"),
        ({"prompt": {"a": 1}, "answer": "a"}, "a column of JSON is `messages`"),
        ({"messages": "hello", "answer": "a"}, "columns of plain text are `prompt` and `answer`"),
        ({"messages": {"a": 1}, "answer": "a"}, "messages is an object, not a list"),
        ({"record_id": 1, "thumb": 0}, "a thumb is 0, which may mean down or none"),
        ({"record_id": 1, "kind": "rating"}, "no value"),
        ({"id": 1}, "neither a call"),
    ],
)
def test_a_row_that_is_no_record_has_a_reason(row: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=said):
        rows(**row)


@pytest.mark.parametrize(
    ("value", "field", "kept"),
    [
        (Decimal("5"), "id", 5),
        (5.0, "id", 5),
        (5.5, "latency_ms", 5.5),
        (Decimal("0.25"), "latency_ms", 0.25),
        (timedelta(seconds=1.5), "latency_ms", 1500.0),
        (UUID(int=1), "id", "00000000-0000-0000-0000-000000000001"),
        (b'{"a": 1}', "request", '{"a": 1}'),
        (memoryview(b"\xff\x00"), "id", "ff00"),
        (UUID(int=1).bytes, "id", "00000000000000000000000000000001"),
        (datetime(2026, 1, 1, 12), "timestamp", "2026-01-01T12:00:00"),
        (date(2026, 1, 1), "timestamp", "2026-01-01"),
        ({"at": [AT]}, "request", {"at": ["2026-01-01T00:00:00+00:00"]}),
    ],
)
def test_what_drivers_give_becomes_json(value: Any, field: str, kept: Any) -> None:
    assert plain(value, field) == kept
    json.dumps(plain(value, field))
