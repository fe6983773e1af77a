"""Inputs and outputs as libraries are given and return them, in OpenAI's form."""

import json
from typing import Any

import pytest

from infra.database.jsontext import Rejected
from infra.database.messages import normalized_request, normalized_response
from infra.telemetry import payloads

WEATHER = {"name": "weather", "arguments": '{"city": "Oslo"}'}
CALL = {"id": "c1", "type": "function", "function": WEATHER}
ARGUMENTS = {"city": "Oslo"}
EXPECTED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How cold is Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "4"},
]
OPENAI = {
    "model": "m", "temperature": 0, "messages": [*EXPECTED[:2], {**EXPECTED[2], "refusal": None}, EXPECTED[3]],
    "extra_headers": {"Authorization": "Bearer sk-1"}, "stream": True,
}  # fmt: skip
RESPONSES = {
    "model": "m", "instructions": "Be brief.", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "How cold is Oslo?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", **WEATHER},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
    ],
}  # fmt: skip
ANTHROPIC = {
    "model": "m", "system": [{"type": "text", "text": "Be brief."}], "messages": [
        {"role": "user", "content": "How cold is Oslo?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": ARGUMENTS}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "4"}]},
    ],
}  # fmt: skip
LANGCHAIN = [[
    {"type": "system", "content": "Be brief."},
    {"lc": 1, "id": ["langchain", "schema", "HumanMessage"], "kwargs": {"content": "How cold is Oslo?"}},
    {"type": "ai", "content": "", "tool_calls": [{"name": "weather", "args": ARGUMENTS, "id": "c1"}]},
    {"type": "tool", "content": "4", "tool_call_id": "c1"},
]]  # fmt: skip
OTEL = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [{"type": "text", "content": "How cold is Oslo?"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": ARGUMENTS}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "4"}]},
]


@pytest.mark.parametrize("given", [OPENAI, RESPONSES, ANTHROPIC, LANGCHAIN, OTEL, json.dumps(OPENAI)])
def test_every_form_of_a_request_says_the_same(given: Any) -> None:
    request = normalized_request(payloads.request(given))
    assert [{**message, "content": message.get("content") or None} for message in request["messages"]] == EXPECTED
    assert "sk-1" not in json.dumps(request)


@pytest.mark.parametrize("given", ["How cold?", ["How cold?"], {"prompt": "How cold?"}, {"input": "How cold?"}])
def test_text_is_a_message_of_the_user(given: Any) -> None:
    assert payloads.request(given)["messages"] == [{"role": "user", "content": "How cold?"}]


@pytest.mark.parametrize(
    "given", [{"city": "Oslo"}, '{"city": "Oslo"}', [], [1], None, 5, {}, {"messages": [{}]}, "[NaN]"]
)
def test_what_is_neither_messages_nor_text_is_refused(given: Any) -> None:
    with pytest.raises(Rejected):
        payloads.request(given)


def chunk(**delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


@pytest.mark.parametrize(
    "said",
    [
        "cold", {"role": "assistant", "content": "cold"}, {"content": "cold"},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "cold"}, "finish_reason": "stop"}]},
        {"choices": [{"text": "cold"}]}, [chunk(content="co"), chunk(content="ld")],
        {"object": "response", "output": [
            {"type": "reasoning"}, {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "cold"}]},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "cold"}], "stop_reason": "end_turn"},
        {"generations": [[{"text": "cold", "message": {"type": "ai", "content": "cold"}}]]},
        {"messages": [{"type": "human", "content": "?"}, {"type": "ai", "content": "cold"}]},
        [{"role": "assistant", "parts": [{"type": "text", "content": "cold"}]}],
    ],
)  # fmt: skip
def test_every_form_of_an_answer_says_the_same(said: Any) -> None:
    for given in (said, said if isinstance(said, str) else json.dumps(said)):
        (choice,) = normalized_response(payloads.response(given, structured=False))["choices"]
        assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", "cold")


def test_an_object_is_what_a_model_said_but_not_what_a_function_did() -> None:
    said = {"label": "refund"}
    for given in (said, json.dumps(said)):
        (choice,) = payloads.response(given)["choices"]
        assert json.loads(choice["message"]["content"]) == said
    with pytest.raises(Rejected, match="the output is an object"):
        payloads.response(said, structured=False)
    with pytest.raises(Rejected, match="no output"):
        payloads.response(None)


def test_a_right_answer_is_a_message_or_text() -> None:
    message = {"role": "assistant", "content": "cold"}
    assert payloads.answer(json.dumps(message)) == payloads.answer({"choices": [{"message": message}]}) == message
    assert payloads.answer("cold") == "cold" and payloads.answer({"a": 1}) == '{"a": 1}'
