"""OTLP, OpenTelemetry's wire format, as plain spans and events: traces and logs, in protobuf or JSON.

JSON is protobuf's own mapping with three exceptions (OTLP specification 1.x, "JSON Protobuf Encoding"): trace and span
ids are hexadecimal, enums are numbers, and fields that are not known are ignored. 64-bit integers are strings there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from infra.database.jsontext import Rejected
from infra.database.messages import kind

Signal = Literal["traces", "logs"]
ERROR = 2  # Status.StatusCode
REQUESTS: dict[Signal, type[Message]] = {"traces": ExportTraceServiceRequest, "logs": ExportLogsServiceRequest}
RESPONSES: dict[Signal, Any] = {"traces": ExportTraceServiceResponse, "logs": ExportLogsServiceResponse}
# Where things are: request -> resource -> scope -> spans or records.
LEVELS: dict[Signal, tuple[str, str, str]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"), "logs": ("resourceLogs", "scopeLogs", "logRecords"),
}  # fmt: skip
Attributes = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something said at a moment, by a span or in a log.

    Attributes:
        trace, span: Hexadecimal ids of the span it belongs to; empty where there is none.
        body: Of a log record.
        resource: What the process said of itself.
        origin: The OTLP document of this alone.
    """

    name: str
    at: datetime
    trace: str
    span: str
    attributes: Attributes
    body: Any = None
    resource: Attributes = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """A piece of work with a beginning and an end.

    Attributes:
        trace, span: Hexadecimal ids.
        error: What went wrong; None where nothing did.
        origin: The OTLP document of this alone.
    """

    name: str
    trace: str
    span: str
    start: datetime
    end: datetime
    attributes: Attributes
    events: tuple[Event, ...]
    error: str | None
    resource: Attributes
    origin: dict[str, Any]


def decode(body: bytes, signal: Signal) -> dict[str, Any]:
    """A protobuf request as OTLP JSON.

    Raises:
        Rejected: It is none.
    """
    request = REQUESTS[signal]()
    try:
        request.ParseFromString(body)
    except DecodeError as problem:
        raise Rejected(f"no OTLP {signal} in protobuf: {problem}") from problem
    document: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for _, entry in _entries(document, signal):
        for ids in (entry, *entry.get("links", ())):
            for key in ("traceId", "spanId", "parentSpanId"):
                if key in ids:
                    ids[key] = base64.b64decode(ids[key]).hex()
    return document


def signal_of(body: bytes) -> Signal:
    """Whether a protobuf request holds traces or logs, which no field says: only spans begin with 16 bytes of id."""
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return "logs"
    spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    return "traces" if all(len(span.trace_id) == 16 and len(span.span_id) == 8 for span in spans) else "logs"


def read(document: Any) -> Iterator[Span | Event]:
    """The spans and events of an OTLP JSON document, in order.

    Raises:
        Rejected: It is none, or a part of it cannot be understood.
    """
    if not isinstance(document, dict):
        raise Rejected(f"an OTLP document is {kind(document)}, not an object")
    signals: list[Signal] = [signal for signal, (top, _, _) in LEVELS.items() if top in document]
    if not signals:
        raise Rejected("no OTLP: neither resourceSpans nor resourceLogs")
    for signal in signals:
        for said, entry in _entries(document, signal):
            try:
                yield (_span if signal == "traces" else _log)(entry, attributes(said.get("attributes")), said)
            except (KeyError, TypeError, ValueError, AttributeError) as problem:
                raise Rejected(
                    f"a {'span' if signal == 'traces' else 'log record'} is broken: {problem!r}"
                ) from problem


def _entries(document: Mapping[str, Any], signal: Signal) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Spans or log records as they are, each with its resource."""
    top, scopes, entries = LEVELS[signal]
    for group in _objects(document.get(top), top):
        resource = group.get("resource") or {}
        for scope in _objects(group.get(scopes), scopes):
            for entry in _objects(scope.get(entries), entries):
                yield resource, entry


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Rejected(f"{what} is {kind(value)}, not a list of objects")
    return value


def _alone(signal: Signal, resource: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    top, scopes, entries = LEVELS[signal]
    return {top: [{"resource": resource, scopes: [{entries: [entry]}]}]}


def _span(entry: dict[str, Any], resource: Attributes, said: dict[str, Any]) -> Span:
    trace, span = str(entry["traceId"]).lower(), str(entry["spanId"]).lower()
    status = entry.get("status") or {}
    events = tuple(
        Event(
            str(event.get("name", "")), moment(event), trace, span, attributes(event.get("attributes")), None, resource,
            _alone("traces", said, {**entry, "events": [event]}),
        )
        for event in entry.get("events") or ()
    )  # fmt: skip
    return Span(
        name=str(entry.get("name", "")), trace=trace, span=span,
        start=nanoseconds(entry["startTimeUnixNano"]), end=nanoseconds(entry["endTimeUnixNano"]),
        attributes=attributes(entry.get("attributes")), events=events,
        error=str(status.get("message") or "error") if status.get("code") in (ERROR, "STATUS_CODE_ERROR") else None,
        resource=resource, origin=_alone("traces", said, entry),
    )  # fmt: skip


def _log(entry: dict[str, Any], resource: Attributes, said: dict[str, Any]) -> Event:
    own = attributes(entry.get("attributes"))
    name = entry.get("eventName") or own.get("event.name") or ""
    trace, span = (str(entry.get(key) or "").lower() for key in ("traceId", "spanId"))
    return Event(
        str(name), moment(entry), trace, span, own, value(entry.get("body")), resource, _alone("logs", said, entry)
    )


def moment(entry: Mapping[str, Any]) -> datetime:
    """When something happened, or else was seen."""
    given = (entry.get("timeUnixNano"), entry.get("observedTimeUnixNano"))
    return nanoseconds(next((time for time in given if time and int(time)), 0))


def nanoseconds(since: Any) -> datetime:
    return datetime.fromtimestamp(int(since) / 1e9, UTC)


def attributes(pairs: Any) -> Attributes:
    """A list of {key, value} as a dictionary."""
    return {str(pair["key"]): value(pair.get("value")) for pair in pairs or ()}


def value(wrapped: Any) -> Any:
    """What an `AnyValue` holds: text, a truth value, a number, bytes as text of base64, a list or an object."""
    if not wrapped:
        return None
    ((sort, held),) = wrapped.items()
    match sort:
        case "intValue":
            return int(held)
        case "doubleValue":
            return float(held)
        case "arrayValue":
            return [value(one) for one in held.get("values") or ()]
        case "kvlistValue":
            return attributes(held.get("values"))
    return held


def parsed(said: Any) -> Any:
    """What an attribute means: spans carry structures as JSON, events as they are. Text that is no JSON stays."""
    if isinstance(said, str):
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            return said
    return said
