import json
from typing import Any

import pytest

from tasks.metrics import JSONSchema
from tests.tasks.metrics.test_tool_call import calling, saying, value

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
ASKED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def valid(answer: dict[str, Any], **row: Any) -> float:
    return value(JSONSchema(), answer, saying(""), **row)


@pytest.mark.parametrize(
    ("said", "good"), [('{"n": 1}', 1), (' {"n": 1.0} ', 1), ('{"n": "1"}', 0), ("{}", 0), ("n", 0), ("[" * 99_999, 0)]
)
def test_words_are_held_against_the_response_format(said: str, good: int) -> None:
    assert valid(saying(said), response_format=ASKED) == good


def test_calls_are_held_against_the_tools_parameters() -> None:
    assert valid(calling(("f", {"n": 1})), tools=[TOOL]) == 1
    assert valid(calling(("f", {"n": 1}), ("f", {"n": None})), tools=[TOOL]) == 0
    assert valid(calling(("f", '{"n": ')), tools=[TOOL]) == valid(calling(("g", {})), tools=[TOOL]) == 0
    assert valid(saying("no call, nothing wrong"), tools=[TOOL]) == 1
    assert valid(calling(("f", {"n": 1})), tools=[TOOL], response_format=ASKED) == 1, "a call needs no JSON words"
    assert valid(saying("[1]"), response_format={"type": "json_object"}) == 0


@pytest.mark.parametrize(
    "schema",
    [{"type": "objekt"}, {"$ref": "https://example.com/schema.json"}, {"properties": {"n": {"$ref": "file:///x"}}}],
)
def test_nothing_is_said_by_a_schema_that_is_none_or_lies_elsewhere(schema: dict[str, Any]) -> None:
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert valid(saying("{}"), response_format=asked) == -1
    assert valid(saying("{}")) == valid(saying("{}"), response_format={"type": "text"}) == -1


def test_a_reference_within_the_schema_is_followed() -> None:
    inner = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    asked = {"type": "json_schema", "json_schema": {"schema": inner}}
    assert [valid(saying(json.dumps({"n": n})), response_format=asked) for n in (1, "1")] == [1, 0]
