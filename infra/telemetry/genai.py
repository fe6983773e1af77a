"""Spans and events about a language model as records of traffic and feedback.

| convention                       | where the messages are                                                            |
|----------------------------------|-----------------------------------------------------------------------------------|
| OpenTelemetry GenAI from 1.37 on | `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`,  |
|                                  | `gen_ai.tool.definitions`: on the span as JSON, or on its event                   |
|                                  | `gen_ai.client.inference.operation.details`                                       |
| the same, up to 1.36             | one event a message: `gen_ai.user.message` and the like, `gen_ai.choice`; or two: |
|                                  | `gen_ai.content.prompt`, `gen_ai.content.completion`                              |
| OpenLLMetry (Traceloop)          | `gen_ai.prompt.0.content`, `gen_ai.completion.0.content`, `llm.request.functions` |
| OpenInference (Phoenix)          | `llm.input_messages.0.message.content`, `llm.output_messages…`, `llm.tools…`; or  |
|                                  | `input.value` and `output.value`                                                  |

The first line of which a span has anything is read. A span that is no call of a chat or text model (a tool, an agent, a
retrieval, an embedding) is no record. The id of a record is the response's; where there is none, the span's.

An event `gen_ai.evaluation.result` is feedback on the response it names, or else on the call whose span it belongs to
(the id of whose response is known only where both come in one request). A label that is plainly good or bad is a thumb;
a number is a rating of the metric it is called by, on a scale nobody knows.

The workload is the attribute `flywheel.workload` of the span or of its resource, else what the reader is told, else the
resource's `service.name`.

Sources: semantic-conventions 1.41.1 `docs/gen-ai`, 1.36.0 `docs/gen-ai/gen-ai-events.md`; OpenInference
`spec/semantic_conventions.md`; openllmetry `opentelemetry-semantic-conventions-ai`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from infra.database.messages import Rejected
from infra.database.records import Parsed, parse
from infra.telemetry.otlp import Attributes, Event, Span, parsed, read

SOURCE: Literal["otel"] = "otel"
Record = dict[str, Any]
Message = dict[str, Any]

CALLS = ("chat", "text_completion", "generate_content", "completion")
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
MESSAGE = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
CHOICE = "gen_ai.choice"
PROMPT, COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"
GOOD = {"pass", "passed", "correct", "true", "good", "positive", "up", "thumbs_up", "accepted"}
BAD = {"fail", "failed", "incorrect", "false", "bad", "negative", "down", "thumbs_down", "rejected"}
# Of a request: our name <- theirs, the first that is there.
PARAMETERS = {
    "model": ("gen_ai.request.model", "llm.model_name", "gen_ai.response.model"),
    "temperature": ("gen_ai.request.temperature", "llm.request.temperature"),
    "top_p": ("gen_ai.request.top_p", "llm.top_p"),
    "max_tokens": ("gen_ai.request.max_tokens", "llm.request.max_tokens"),
    "seed": ("gen_ai.request.seed",),
    "stop": ("gen_ai.request.stop_sequences",),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", "llm.frequency_penalty"),
    "presence_penalty": ("gen_ai.request.presence_penalty", "llm.presence_penalty"),
}
USAGE = {
    "prompt_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "completion_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
}
NO_CONTENT = (
    "a span without messages: its instrumentation leaves them out unless it is told otherwise, most by "
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
)
FINISHED = {"tool_call": "tool_calls", "tool_use": "tool_calls", "end_turn": "stop", "max_tokens": "length"}


class Call(NamedTuple):
    """A record, or why there is none, and the OTLP document it comes from."""

    record: Record | Rejected
    origin: dict[str, Any]


def rows(document: Any, at: datetime, workload: str = "") -> Iterator[Parsed]:
    """The records of an OTLP JSON document; `at` is the time of those that have none.

    Raises:
        Rejected: It is no such document.
    """
    for record, origin in list(records(read(document), workload)):
        own = json.dumps(origin).encode()
        try:
            if isinstance(record, Rejected):
                raise record
            yield Parsed(own, parse(record, source=SOURCE, at=at, workload=workload))
        except Rejected as problem:
            yield Parsed(own, None, str(problem))


def records(found: Iterable[Span | Event], workload: str = "") -> Iterator[Call]:
    """What is a record among spans and events, in order, in the form that `infra.database.records.parse` takes.

    `workload` is that of calls which name none. A call whose messages cannot be understood comes out as the reason, so
    that the others are read all the same. Events of one message each are put together by the span they belong to, so
    they belong into one call of this function.
    """
    found = list(found)
    ids = {(one.trace, one.span): str(one.attributes.get("gen_ai.response.id") or "") for one in found}
    loose: dict[tuple[str, str], list[Event]] = {}
    for one in found:
        for event in one.events if isinstance(one, Span) else (one,):
            if event.name == EVALUATION:
                yield _tried(_feedback, event, ids[one.trace, one.span])
        if isinstance(one, Span):
            if is_call(one.attributes):
                yield _tried(_interaction, one, workload)
        elif one.name == DETAILS:
            yield _tried(_interaction, _as_span((one,)), workload)
        elif MESSAGE.fullmatch(one.name) or one.name == CHOICE:
            loose.setdefault((one.trace, one.span), []).append(one)
    for events in loose.values():
        yield _tried(_interaction, _as_span(events), workload)


def is_call(said: Attributes) -> bool:
    """Whether a span with these attributes is a call of a chat or text model."""
    if sort := said.get("openinference.span.kind"):
        return str(sort).upper() == "LLM"
    operation = said.get("gen_ai.operation.name") or said.get("llm.request.type")
    if operation:
        return operation in CALLS
    return "gen_ai.request.model" in said or any(key.startswith("gen_ai.prompt.") for key in said)


def _tried(make: Callable[..., Record], of: Span | Event, *more: str) -> Call:
    try:
        return Call(make(of, *more), of.origin)
    except Rejected as problem:
        return Call(Rejected(f"{_named(of)}: {problem}"), of.origin)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        return Call(Rejected(f"{_named(of)}: {problem!r}"), of.origin)


def _named(of: Span | Event) -> str:
    return f"{'span' if isinstance(of, Span) else 'event'} {of.name[:80]!r} {of.span}".rstrip()


def _as_span(events: Sequence[Event]) -> Span:
    """Events that say all there is to say about a call."""
    first, last = events[0], events[-1]
    origin = {"resourceLogs": [part for event in events for part in event.origin["resourceLogs"]]}
    return Span(
        last.name, last.trace, last.span, first.at, last.at, last.attributes, tuple(events), None, last.resource, origin
    )


def _interaction(span: Span, workload: str) -> Record:
    details = [event.attributes for event in span.events if event.name == DETAILS]
    said: Attributes = {key: held for part in (*details, span.attributes) for key, held in part.items()}
    asked, answers = _current(said) or _by_events(span.events) or _traceloop(said) or _openinference(said) or ([], [])
    if not asked:
        raise Rejected(NO_CONTENT)
    request: Record = {"messages": asked}
    parameters = parsed(said.get("llm.invocation_parameters"))
    if isinstance(parameters, dict):
        request |= {key: parameters[key] for key in PARAMETERS if key in parameters}
    request |= _chosen(said, PARAMETERS)
    if tools := _tools(said):
        request["tools"] = tools
    reasons = said.get("gen_ai.response.finish_reasons") or said.get("llm.finish_reason") or []
    reasons = reasons if isinstance(reasons, list) else [reasons]
    response: Record = {"usage": _chosen(said, USAGE)}
    if model := said.get("gen_ai.response.model"):
        response["model"] = model
    if answers:
        response["choices"] = [
            {"index": i, "message": message, "finish_reason": _finished(reason or (reasons[i : i + 1] or [None])[0])}
            for i, (message, reason) in enumerate(answers)
        ]
    elif span.error:
        response["error"] = {"message": span.error, "type": said.get("error.type")}
    else:
        raise Rejected("the span has messages, but no answer and no error")
    own = f"{span.trace}-{span.span}" if span.span else None
    return {
        "id": said.get("gen_ai.response.id") or own, "timestamp": span.start.isoformat(),
        "workload_id": _workload(said, span.resource, workload),
        "client_id": next((said[key] for key in ("user.id", "enduser.id") if said.get(key)), None),
        "conversation_id": said.get("gen_ai.conversation.id") or said.get("session.id"),
        "latency_ms": 1000 * (span.end - span.start).total_seconds() or None,
        "request": request, "response": response,
    }  # fmt: skip


def _workload(said: Attributes, resource: Attributes, told: str) -> str | None:
    service = str(resource.get("service.name") or "")
    named = (said.get("flywheel.workload"), resource.get("flywheel.workload"), told)
    return next((str(name) for name in named if name), None if service.startswith("unknown_service") else service)


def _chosen(said: Attributes, table: Mapping[str, tuple[str, ...]]) -> Record:
    """The fields of `table` that are there, by our names."""
    found = {
        ours: next((said[key] for key in theirs if said.get(key) is not None), None) for ours, theirs in table.items()
    }
    return {ours: held for ours, held in found.items() if held is not None}


def _finished(reason: Any) -> Any:
    return FINISHED.get(reason, reason) if isinstance(reason, str) else None


Said = tuple[list[Message], list[tuple[Message, Any]]]
"""The messages that were asked with, and each answer with the reason why it ended."""


def _current(said: Attributes) -> Said | None:
    """OpenTelemetry GenAI, from 1.37 on."""
    asked, answered = (parsed(said.get(f"gen_ai.{way}.messages")) for way in ("input", "output"))
    if asked is None and answered is None:
        return None
    messages = [message for one in _list(asked, "gen_ai.input.messages") for message in _of_parts(one)]
    instructions = parsed(said.get("gen_ai.system_instructions"))
    if instructions:
        parts = instructions if isinstance(instructions, list) else [{"type": "text", "content": instructions}]
        messages[:0] = _of_parts({"role": "system", "parts": parts})
    answers = [
        (_of_parts({"role": "assistant", **one})[-1], one.get("finish_reason"))
        for one in _list(answered, "gen_ai.output.messages")
    ]
    return messages, answers


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise Rejected(f"{what} is no list of messages")
    return value or []


def _of_parts(message: Any) -> list[Message]:
    """A message of parts in OpenAI's form; a tool's has one for each response."""
    if not isinstance(message, dict):
        raise Rejected("a message is no object")
    if "parts" not in message:
        return [{key: held for key, held in message.items() if key != "finish_reason"}]
    texts: list[str] = []
    others: list[Record] = []
    calls: list[Record] = []
    responses: list[Message] = []
    for part in _list(message["parts"], "parts"):
        match part.get("type"):
            case "text":
                texts.append(str(part.get("content") or part.get("text") or ""))
            case "tool_call":
                calls.append({"id": part.get("id"), "name": part["name"], "arguments": part.get("arguments") or {}})
            case "tool_call_response":
                answer = part.get("response", part.get("result"))
                responses.append({"role": "tool", "tool_call_id": part.get("id"), "content": _text(answer)})
            case "reasoning" | "thinking":
                continue
            case _:
                others.append(part)
    content: Any = "".join(texts) or None
    if others:
        content = [{"type": "text", "text": text} for text in texts] + others
    rest: list[Message] = []
    if content is not None or calls or not responses:
        name = {"name": message["name"]} if message.get("name") else {}
        said = {"role": message.get("role"), **name, "content": content if content is not None or calls else ""}
        rest = [{**said, **({"tool_calls": calls} if calls else {})}]
    return rest + responses


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_events(events: tuple[Event, ...]) -> Said | None:
    """One event a message, or one for all of them: OpenTelemetry GenAI, up to 1.36."""
    asked: list[Message] = []
    answers: list[tuple[Message, Any]] = []
    for event in events:
        said = event.attributes | (event.body if isinstance(event.body, dict) else {})
        if isinstance(content := parsed(said.get("gen_ai.event.content")), dict):
            said |= content
        if sort := MESSAGE.fullmatch(event.name):
            asked.append(_flat({"role": sort[1], **said}))
        elif event.name == CHOICE:
            inner = parsed(said.get("message"))
            message = inner if isinstance(inner, dict) else {"content": said.get("content", inner)}
            whole = {"tool_calls": said.get("tool_calls"), **message, "role": "assistant"}
            answers.append((_flat(whole), said.get("finish_reason")))
        elif event.name == PROMPT:
            asked += _all(said.get("gen_ai.prompt"), "user")
        elif event.name == COMPLETION:
            answers += [(message, None) for message in _all(said.get("gen_ai.completion"), "assistant")]
    return (asked, answers) if asked or answers else None


def _all(said: Any, role: str) -> list[Message]:
    """Messages as JSON, or a text that is one."""
    messages = parsed(said)
    if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
        return [{"role": role, **one} for one in messages]
    return [{"role": role, "content": _text(said)}]


def _flat(said: Message) -> Message:
    """A message with the fields that one has, of what an event says."""
    fields: Record = {"tool_call_id": said.get("id")} if said["role"] == "tool" else {}
    said = {**said, "tool_calls": parsed(said.get("tool_calls"))}
    kept = {key: said.get(key) or fields.get(key) for key in ("name", "tool_calls", "tool_call_id")}
    content = said.get("content")
    content = content if content is None or isinstance(content, str | list) else _text(content)
    return {"role": said["role"], "content": content, **{key: held for key, held in kept.items() if held}}


def _traceloop(said: Attributes) -> Said | None:
    asked, answered = nested(said, "gen_ai.prompt"), nested(said, "gen_ai.completion")
    if not asked and not answered:
        return None
    messages = [_numbered(one) for one in _in_order(asked)]
    answers = [(_numbered({"role": "assistant", **one}), one.get("finish_reason")) for one in _in_order(answered)]
    return messages, answers


def _numbered(one: Record) -> Message:
    message = {"role": one.get("role"), "content": one.get("content")}
    if calls := _in_order(one.get("tool_calls")):
        message["tool_calls"] = calls
    if one.get("tool_call_id"):
        message["tool_call_id"] = one["tool_call_id"]
    return message


def _openinference(said: Attributes) -> Said | None:
    asked, answered = nested(said, "llm.input_messages"), nested(said, "llm.output_messages")
    if not asked:
        return _values(said)
    return (
        [_inferred(one) for one in _in_order(asked)],
        [(_inferred({"message": {"role": "assistant"} | one["message"]}), None) for one in _in_order(answered)],
    )


def _inferred(one: Record) -> Message:
    message = one["message"]
    content = message.get("content")
    if content is None and message.get("contents"):
        parts = [part["message_content"] for part in _in_order(message["contents"])]
        texts = [part for part in parts if part.get("type") == "text"]
        content = "".join(part["text"] for part in texts) if len(texts) == len(parts) else parts
    said: Message = {
        "role": message.get("role"),
        "content": content if not isinstance(content, dict) else _text(content),
    }
    if calls := [call["tool_call"] for call in _in_order(message.get("tool_calls"))]:
        said["tool_calls"] = [{"id": call.get("id"), "function": call["function"]} for call in calls]
    for key in ("name", "tool_call_id"):
        if message.get(key):
            said[key] = message[key]
    return said


def _values(said: Attributes) -> Said | None:
    """What went in and came out as a whole: a request of OpenAI's form and its response, or text."""
    before, after = said.get("input.value"), said.get("output.value")
    if before is None:
        return None
    request, response = parsed(before), parsed(after)
    asked = request.get("messages") if isinstance(request, dict) else None
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": _text(before)}]
    if isinstance(response, dict) and isinstance(response.get("choices"), list):
        return messages, [(choice["message"], choice.get("finish_reason")) for choice in response["choices"]]
    return messages, [] if after is None else [({"role": "assistant", "content": _text(after)}, None)]


def _tools(said: Attributes) -> list[Record]:
    """Tools in OpenAI's form, whatever they were written as."""
    found = parsed(said.get("gen_ai.tool.definitions"))
    tools: list[Any] = found if isinstance(found, list) else _in_order(nested(said, "llm.request.functions"))
    if not tools:
        tools = [parsed(one.get("tool", {}).get("json_schema")) for one in _in_order(nested(said, "llm.tools"))]
    shaped = []
    for tool in tools:
        if isinstance(tool, dict):
            function = {key: held for key, held in tool.get("function", tool).items() if key != "type"}
            function["parameters"] = parsed(function.get("parameters"))
            shaped.append({"type": "function", "function": function})
    return shaped


def nested(said: Attributes, prefix: str) -> Any:
    """What dotted keys under `prefix` spell: `a.0.b` = 1 is {"0": {"b": 1}}."""
    whole: dict[str, Any] = {}
    for key, held in said.items():
        if not key.startswith(f"{prefix}."):
            continue
        *path, last = key[len(prefix) + 1 :].split(".")
        inner = whole
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise Rejected(f"{key} is below a value")
        inner[last] = held
    return whole


def _in_order(numbered: Any) -> list[Any]:
    """The values of {"0": …, "1": …}, or a list as it is."""
    if isinstance(numbered, list):
        return numbered
    return [numbered[key] for key in sorted(numbered or {}, key=int)]


def _feedback(event: Event, of_span: str) -> Record:
    """`of_span` is the id of the response of the event's span, where that is known."""
    said = event.attributes | (event.body if isinstance(event.body, dict) else {})
    about = said.get("gen_ai.response.id") or of_span or (f"{event.trace}-{event.span}" if event.span else None)
    if not about:
        raise Rejected("an evaluation names neither a gen_ai.response.id nor belongs to a span")
    label, score = said.get("gen_ai.evaluation.score.label"), said.get("gen_ai.evaluation.score.value")
    metric = said.get("gen_ai.evaluation.name")
    record: Record = {"record_id": about, "timestamp": event.at.isoformat(), "metric": metric}
    plain = str(label).strip().lower().replace(" ", "_")
    if plain in GOOD | BAD:
        return {**record, "kind": "thumb", "value": 1 if plain in GOOD else -1}
    if score is not None:
        return {**record, "kind": "rating", "value": score, "metric": metric or "evaluation"}
    if label is not None:
        return {**record, "kind": "label", "value": str(label)}
    raise Rejected("an evaluation has neither score.value nor score.label")
