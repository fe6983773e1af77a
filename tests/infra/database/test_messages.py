"""OpenAI messages in the shapes that logs have."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ({"messages": ["hi"]}, r"request.messages\[0\] is text"),
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
        ({"choices": [{}]}, r"response.choices\[0\] has no message"),
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
        {"choices": [{"message": {"content": "It is on"}, "finish_reason": "error"}]},
        [{"choices": [{"delta": {"content": "It is on"}}]}],
        [{"choices": [{"delta": {"content": "It is on"}}]}, {"error": {"message": "overloaded"}}],
        [{"error": {"message": "overloaded"}}],
    ],
)
def test_an_error_or_half_an_answer_is_kept_but_not_imitated(response: Any) -> None:
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


def test_a_stream_is_whole_where_each_choice_has_its_end() -> None:
    def chunk(index: int, finish: str | None) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {"content": "On its way."}, "finish_reason": finish}]}

    whole = assembled([chunk(0, None), chunk(1, "stop"), {"choices": [], "error": {"message": "overloaded"}}])
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["cut_off", "stop"]
    assert whole["error"] == {"message": "overloaded"} and normalized_response(whole) == whole


def test_what_else_is_said_in_a_stream_is_put_together_too() -> None:
    deltas = [{"role": "assistant", "reasoning_content": "An order"}, {"reasoning_content": "?"}, {"content": "Yes."}]
    (choice,) = assembled([{"choices": [{"delta": delta}]} for delta in deltas])["choices"]
    assert choice["message"] == {"role": "assistant", "reasoning_content": "An order?", "content": "Yes."}


KEYS = st.sampled_from(["index", "tool_calls", "function", "name", "arguments", "content", "id", "logprobs"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(KEYS, some, max_size=4),
    max_leaves=12,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"index": st.integers(0, 1) | ANYTHING, "id": ANYTHING, "function": st.dictionaries(KEYS, ANYTHING)},
    ),
    max_size=2,
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "index": ANYTHING,
        "delta": st.fixed_dictionaries({}, optional={"content": ANYTHING, "tool_calls": CALLS | ANYTHING}) | ANYTHING,
        "finish_reason": ANYTHING,
        "logprobs": st.dictionaries(KEYS, ANYTHING),
    },
)
CHUNKS = st.fixed_dictionaries({}, optional={"choices": st.lists(CHOICES | ANYTHING, max_size=3) | ANYTHING})


@given(st.lists(CHUNKS | ANYTHING, max_size=4))
def test_whatever_a_teacher_streams_is_put_together_or_refused(chunks: list[Any]) -> None:
    with contextlib.suppress(Rejected):
        json.dumps(assembled(chunks))
