"""OpenAI messages in the shapes that logs have."""

from typing import Any

import pytest

from infra.database.jsontext import Rejected
from infra.database.messages import (
    answer_of,
    assembled,
    assistant_message,
    normalized_request,
    normalized_response,
    tool_calls,
)

CALL = {"id": "call_0", "type": "function", "function": {"name": "track", "arguments": '{"order": "48213"}'}}


@pytest.mark.parametrize(
    "logged",
    [
        CALL,
        {"function": {"name": "track", "arguments": {"order": "48213"}}},
        {"name": "track", "arguments": {"order": "48213"}},
        {"id": None, "type": "function", "function": {"name": "track", "arguments": '{"order": "48213"}'}},
    ],
)
def test_a_call_has_one_shape_however_it_was_logged(logged: dict[str, Any]) -> None:
    assert tool_calls([logged]) == [CALL]


def test_malformed_arguments_stay_as_the_model_said_them_and_are_not_imitated() -> None:
    broken = {"function": {"name": "track", "arguments": '{"order": 48'}}
    response = normalized_response({"choices": [{"message": {"tool_calls": [broken]}}]})
    assert response["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"order": 48'
    assert answer_of(response) is None


def test_roles_of_other_exports_are_ours() -> None:
    request = normalized_request({"messages": [{"role": "human", "content": "a"}, {"role": "ai", "content": None}]})
    assert [message["role"] for message in request["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("text", "request is text"),
        ({}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": ["hi"]}, "message 0 is text"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "role 'boss'"),
        ({"messages": [{"role": "user", "content": 5}]}, "a number for content"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": "all"}, "request.tools is text"),
    ],
)
def test_a_request_that_is_none_says_why(request_: Any, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        normalized_request(request_)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (None, "there is no response"),
        ("ok", "response is text"),
        ({}, "neither choices nor an error"),
        ({"choices": [{}]}, "choice 0 has no message"),
        ([], "no chunk with choices"),
    ],
)
def test_a_response_that_is_none_says_why(response: Any, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        normalized_response(response)


@pytest.mark.parametrize(
    "response",
    [
        {"error": {"message": "overloaded"}},
        {"choices": [{"message": {"role": "assistant", "content": "  "}}]},
        {"choices": [{"message": {"role": "assistant", "content": None}}]},
        {"choices": [{"message": {"content": "It is on its w"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": "hm"}, "finish_reason": "content_filter"}]},
    ],
)
def test_an_error_or_half_an_answer_is_kept_but_not_imitated(response: dict[str, Any]) -> None:
    assert answer_of(normalized_response(response)) is None


def test_an_answer_needs_neither_role_nor_finish_reason() -> None:
    response = normalized_response({"choices": [{"message": {"content": "On its way."}}]})
    assert answer_of(response) == {"role": "assistant", "content": "On its way."}


def test_streamed_chunks_are_put_together_by_index() -> None:
    def chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"id": "r1", "model": "m", "choices": [{"index": index, "delta": delta, **more}]}

    first = {"index": 0, "id": "call_0", "function": {"name": "track", "arguments": '{"order"'}}
    second = {"index": 1, "id": "call_1", "function": {"name": "cancel", "arguments": "{}"}}
    whole = assembled(
        [
            chunk(0, {"role": "assistant", "content": "On "}),
            chunk(1, {"tool_calls": [first]}),
            chunk(0, {"content": "its way."}),
            chunk(1, {"tool_calls": [second]}),
            chunk(1, {"tool_calls": [{"index": 0, "function": {"arguments": ': "48213"}'}}]}),
            chunk(0, {}, finish_reason="stop"),
            {"id": "r1", "choices": [], "usage": {"prompt_tokens": 7}},
        ]
    )
    one, two = whole["choices"]
    assert (one["message"]["content"], one["finish_reason"]) == ("On its way.", "stop")
    assert two["message"]["tool_calls"][0] == CALL
    assert two["message"]["tool_calls"][1]["function"] == {"name": "cancel", "arguments": "{}"}
    assert whole["usage"] == {"prompt_tokens": 7} and whole["object"] == "chat.completion"


@pytest.mark.parametrize("said", [None, 5, [], {}, {"content": None}, {"tool_calls": [{"arguments": "{}"}]}])
def test_what_is_no_answer_is_refused(said: Any) -> None:
    with pytest.raises(Rejected):
        assistant_message(said)


def test_log_probabilities_of_chunks_are_put_together_too() -> None:
    def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
        said = None if finish else {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []}], "refusal": None}
        delta = {} if finish else {"content": text}
        return {"id": "a", "choices": [{"index": 0, "delta": delta, "logprobs": said, "finish_reason": finish}]}

    (choice,) = assembled([chunk("On "), chunk("its way."), chunk("", "stop")])["choices"]
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["On ", "its way."]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("On its way.", "stop")
