"""Spans and events about a language model as records of traffic and feedback.

Where the messages are, and in whose convention, is in `conventions.py`. A span that is no call of a chat or text model
(a tool, an agent, a retrieval, an embedding) is no record. The id of a record is the response's; where there is none,
the span's.

An event `gen_ai.evaluation.result` is feedback on the response it names, or else on the call whose span it belongs to
(the id of whose response is known only where both come in one request). What it says is read by the rule of
`opinions.py`, as a person's word: the conventions do not say whose it is.

The workload is the attribute `flywheel.workload` of the span or of its resource, else what the reader is told, else the
resource's `service.name`.

Source: semantic-conventions 1.41.1 `docs/gen-ai/gen-ai-events.md`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from infra.database.jsontext import Rejected
from infra.database.records import Parsed, parse
from infra.telemetry.conventions import CHOICE, MESSAGE, messages, tools
from infra.telemetry.opinions import opinion, verdict
from infra.telemetry.otlp import Attributes, Event, Span, parsed, read
from infra.telemetry.payloads import finished

SOURCE: Literal["otel"] = "otel"
Record = dict[str, Any]

CALLS = ("chat", "text_completion", "generate_content", "completion")
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
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
    asked, answers = messages(said, span.events)
    if not asked:
        raise Rejected(NO_CONTENT)
    request: Record = {"messages": asked}
    parameters = parsed(said.get("llm.invocation_parameters"))
    if isinstance(parameters, dict):
        request |= {key: parameters[key] for key in PARAMETERS if key in parameters}
    request |= _chosen(said, PARAMETERS)
    if offered := tools(said):
        request["tools"] = offered
    reasons = said.get("gen_ai.response.finish_reasons") or said.get("llm.finish_reason") or []
    reasons = reasons if isinstance(reasons, list) else [reasons]
    response: Record = {"usage": _chosen(said, USAGE)}
    if model := said.get("gen_ai.response.model"):
        response["model"] = model
    if answers:
        response["choices"] = [
            {"index": i, "message": message, "finish_reason": finished(reason or (reasons[i : i + 1] or [None])[0])}
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


def _feedback(event: Event, of_span: str) -> Record:
    """`of_span` is the id of the response of the event's span, where that is known."""
    said = event.attributes | (event.body if isinstance(event.body, dict) else {})
    about = said.get("gen_ai.response.id") or of_span or (f"{event.trace}-{event.span}" if event.span else None)
    if not about:
        raise Rejected("an evaluation names neither a gen_ai.response.id nor belongs to a span")
    label, score = said.get("gen_ai.evaluation.score.label"), said.get("gen_ai.evaluation.score.value")
    metric = said.get("gen_ai.evaluation.name")
    if label is None and score is None:
        raise Rejected("an evaluation has neither score.value nor score.label")
    judged = score if score is not None and verdict(label, metric) is None else label
    return {"record_id": about, "timestamp": event.at.isoformat(), **opinion(judged, metric)}
