"""Spans of real instrumentations, and of the conventions' documents, as records."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.database.jsontext import Rejected
from infra.database.records import FeedbackRow, InteractionRow, Row, parse
from infra.database.tables import now
from infra.telemetry import otlp
from infra.telemetry.genai import records

BODIES = Path(__file__).parent / "bodies"
CALL = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
ASKED = [("system", "You tell the weather."), ("user", "How cold is Oslo?")]


def attributes(**said: Any) -> list[dict[str, Any]]:
    def wrapped(value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            return {"arrayValue": {"values": [wrapped(one) for one in value]}}
        if isinstance(value, dict):
            return {"kvlistValue": {"values": [{"key": k, "value": wrapped(v)} for k, v in value.items()]}}
        kinds = {bool: "boolValue", int: "intValue", float: "doubleValue"}
        return {kinds.get(type(value), "stringValue"): str(value) if type(value) is int else value}

    return [{"key": key, "value": wrapped(value)} for key, value in said.items()]


def span(events: tuple[dict[str, Any], ...] = (), status: int = 0, **said: Any) -> dict[str, Any]:
    one = {
        "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174", "name": "chat",
        "startTimeUnixNano": "1764000000000000000", "endTimeUnixNano": "1764000000250000000",
        "attributes": attributes(**said), "events": list(events), "status": {"code": status},
    }  # fmt: skip
    resource = {"attributes": attributes(**{"service.name": "shop"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [one]}]}]}


def log(name: str, body: Any = None, at: int = 0, **said: Any) -> dict[str, Any]:
    entry = {"timeUnixNano": str(1764000000000000000 + at), "eventName": name, "attributes": attributes(**said)}
    if body is not None:
        entry["body"] = attributes(body=body)[0]["value"]
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [entry]}]}]}


def rows(document: dict[str, Any], workload: str = "") -> list[Row | str]:
    """Each record as a row, or the reason why it is none."""
    found: list[Row | str] = []
    for record, _ in records(otlp.read(document), workload):
        try:
            if isinstance(record, Rejected):
                raise record
            found.append(parse(record, source="otel", at=now(), workload=workload))
        except Rejected as problem:
            found.append(str(problem))
    return found


def one(document: dict[str, Any], workload: str = "") -> Any:
    (row,) = rows(document, workload)
    return row


def said(row: InteractionRow) -> list[tuple[str, str | None]]:
    return [(message["role"], message.get("content")) for message in row.request["messages"]]


@pytest.mark.parametrize("name", ["openllmetry-openai-0.62.4.traces", "openinference-openai-0.1.66.traces"])
def test_real_spans_say_what_was_asked_and_answered(name: str) -> None:
    body = (BODIES / f"{name}.pb").read_bytes()
    assert otlp.signal_of(body) == "traces"
    first, second, third = rows(otlp.decode(body, "traces"))
    assert (
        isinstance(first, InteractionRow) and isinstance(second, InteractionRow) and isinstance(third, InteractionRow)
    )
    assert [row.workload for row in (first, second, third)] == ["weather-bot"] * 3
    assert said(first) == ASKED
    choice = first.response["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function, choice["finish_reason"]) == (CALL, "tool_calls")
    assert (first.prompt_tokens, first.completion_tokens, first.request["temperature"]) == (31, 7, 0.2)
    (tool,) = first.request["tools"]
    assert tool["function"]["name"] == "get_weather" and "city" in tool["function"]["parameters"]["properties"]
    assert said(second)[2:] == [("assistant", None), ("tool", '{"celsius": 4}')]
    assert second.request["messages"][3]["tool_call_id"] == second.request["messages"][2]["tool_calls"][0]["id"]
    assert second.response["choices"][0]["message"]["content"] == "It is 4 degrees in Oslo."
    assert "overloaded" in third.response["error"]["message"]


def test_real_log_records_of_one_message_each_are_put_together() -> None:
    body = (BODIES / "opentelemetry-openai-v2-2.1b0.logs.pb").read_bytes()
    assert otlp.signal_of(body) == "logs"
    first, second, refused = rows(otlp.decode(body, "logs"))
    assert isinstance(first, InteractionRow) and isinstance(second, InteractionRow)
    assert said(first) == ASKED
    assert first.response["choices"][0]["message"]["tool_calls"][0]["function"] == CALL
    assert second.request["messages"][3] == {"role": "tool", "content": '{"celsius": 4}', "tool_call_id": "call_7"}
    assert isinstance(refused, str) and "no answer and no error" in refused
    spans = rows(otlp.decode((BODIES / "opentelemetry-openai-v2-2.1b0.traces.pb").read_bytes(), "traces"))
    assert all(isinstance(row, str) and "CAPTURE_MESSAGE_CONTENT" in row for row in spans)


def test_protobuf_and_json_say_the_same() -> None:
    body = (BODIES / "openllmetry-openai-0.62.4.traces.pb").read_bytes()
    document = otlp.decode(body, "traces")
    again = json.loads(json.dumps(document))
    assert [r.record for r in records(otlp.read(document))] == [r.record for r in records(otlp.read(again))]
    assert len(document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"]) == 32


def test_the_current_convention_on_an_event_is_structured() -> None:
    document = log(
        "gen_ai.client.inference.operation.details",
        **{
            "gen_ai.operation.name": "chat", "gen_ai.response.id": "r1", "gen_ai.conversation.id": "c1",
            "gen_ai.system_instructions": [{"type": "text", "content": "Be brief."}],
            "gen_ai.input.messages": [
                {"role": "user", "parts": [{"type": "text", "content": "12"}]},
                {"role": "tool", "parts": [{"type": "tool_call_response", "id": "a", "result": {"n": 1}}]},
            ],
            "gen_ai.output.messages": [
                {
                    "role": "assistant", "finish_reason": "stop",
                    "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "34"}],
                }
            ],
        },
    )  # fmt: skip
    row = one(document, "w")
    assert said(row) == [("system", "Be brief."), ("user", "12"), ("tool", '{"n": 1}')]
    assert row.response["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "34"}, "finish_reason": "stop"}
    ]
    assert (row.external_id, row.conversation, row.workload) == ("r1", "c1", "w")


def test_numbered_attributes_of_openllmetry_are_read_in_their_order() -> None:
    many = {
        f"gen_ai.prompt.{i}.{part}": held for i in range(11) for part, held in (("role", "user"), ("content", str(i)))
    }
    answer = {
        "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.finish_reason": "tool_calls",
        "gen_ai.completion.0.tool_calls.0.id": "a", "gen_ai.completion.0.tool_calls.0.name": "get_weather",
        "gen_ai.completion.0.tool_calls.0.arguments": '{"city": "Oslo"}', "llm.request.type": "chat",
        "llm.request.functions.0.name": "get_weather", "llm.request.functions.0.parameters": '{"type": "object"}',
        "gen_ai.usage.prompt_tokens": 11, "gen_ai.usage.completion_tokens": 3,
    }  # fmt: skip
    row = one(span(**many, **answer))
    assert said(row) == [("user", str(i)) for i in range(11)]
    assert row.response["choices"][0]["message"]["tool_calls"][0]["function"] == CALL
    assert row.request["tools"][0]["function"] == {"name": "get_weather", "parameters": {"type": "object"}}
    assert (row.prompt_tokens, row.completion_tokens, row.latency_ms) == (11, 3, 250.0)
    assert (row.external_id, row.workload) == ("5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174", "shop")


def test_the_two_events_of_1_27_hold_json() -> None:
    told = {"gen_ai.prompt": '[{"role": "user", "content": "true"}]', "gen_ai.completion": "42"}
    events = [
        {"name": f"gen_ai.content.{kind}", "timeUnixNano": "1", "attributes": attributes(**{f"gen_ai.{kind}": held})}
        for kind, held in (("prompt", told["gen_ai.prompt"]), ("completion", told["gen_ai.completion"]))
    ]
    row = one(span(tuple(events), **{"gen_ai.system": "openai", "gen_ai.request.model": "m"}))
    assert said(row) == [("user", "true")]
    assert row.response["choices"][0]["message"]["content"] == "42"


def test_what_is_no_call_of_a_model_is_no_row() -> None:
    for operation in ("execute_tool", "invoke_agent", "embeddings", "retrieval", "create_agent"):
        assert rows(span(**{"gen_ai.operation.name": operation, "gen_ai.request.model": "m"})) == []
    assert rows(span(**{"openinference.span.kind": "CHAIN", "input.value": "x"})) == []
    assert rows(span(**{"http.request.method": "GET"})) == []


@pytest.mark.parametrize(
    ("score", "kind", "value"),
    [
        ({"label": "pass"}, "thumb", {"value": -1, "metric": "Relevance"}),
        ({"label": "Thumbs Down"}, "thumb", {"value": -1, "metric": "Relevance"}),
        ({"value": 0.25}, "rating", {"value": 0.25, "metric": "Relevance"}),
        ({"value": 3, "label": "somewhat relevant"}, "rating", {"value": 3.0, "metric": "Relevance"}),
        ({"label": "somewhat relevant"}, "label", {"value": "somewhat relevant", "metric": "Relevance"}),
    ],
)
def test_an_evaluation_is_feedback(score: dict[str, Any], kind: str, value: Any) -> None:
    if score == {"label": "pass"}:
        value = {**value, "value": 1}
    named = {f"gen_ai.evaluation.score.{part}": held for part, held in score.items()}
    document = log(
        "gen_ai.evaluation.result", **named, **{"gen_ai.evaluation.name": "Relevance", "gen_ai.response.id": "r1"}
    )
    row = one(document)
    assert isinstance(row, FeedbackRow) and (row.record_id, row.kind, row.value) == ("r1", kind, value)


def test_an_evaluation_of_nothing_says_so() -> None:
    assert "names neither" in one(log("gen_ai.evaluation.result", **{"gen_ai.evaluation.score.value": 1.0}))
    assert "neither score.value nor" in one(log("gen_ai.evaluation.result", **{"gen_ai.response.id": "r"}))


def test_one_broken_call_does_not_stop_the_next() -> None:
    good = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": '[{"role": "user", "content": "a"}]'}
    document = span(**good, **{"gen_ai.output.messages": '[{"role": "assistant", "content": "b"}]'})
    broken = span(**{**good, "gen_ai.input.messages": '{"role": "user"}'})
    document["resourceSpans"] += broken["resourceSpans"] + span(**good)["resourceSpans"]
    first, second, third = rows(document)
    assert isinstance(first, InteractionRow)
    assert second == "span 'chat' eee19b7ec3c1b174: gen_ai.input.messages is no list of messages"
    assert third == "span 'chat' eee19b7ec3c1b174: the span has messages, but no answer and no error"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "an OTLP document is a list"),
        ({"spans": []}, "neither resourceSpans nor resourceLogs"),
        ({"resourceSpans": {}}, "resourceSpans is an object, not a list of objects"),
        ({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}, "a span is broken: KeyError"),
    ],
)
def test_what_is_no_otlp_is_named(document: Any, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        list(otlp.read(document))
