"""OTLP over HTTP: what an exporter or a collector posts to /v1/traces and /v1/logs, stored as `ingest` stores files.

Protobuf or JSON, gzipped or not, answered in kind (OTLP specification 1.x, section OTLP/HTTP). Calls that cannot be
understood are kept in quarantine and reported as a partial success, which exporters log and do not send again; a body
that is no OTLP is refused with 400, which they drop; a database that is away is 503, which they try again.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict
from sqlalchemy.exc import DBAPIError

from infra.database.jsontext import Rejected, loads
from infra.database.session import session
from infra.database.store import Record, accept
from infra.privacy.redaction import redactor
from infra.settings import SetupError
from infra.telemetry.genai import SOURCE, rows
from infra.telemetry.otlp import RESPONSES, Signal, decode

LARGEST = 64 << 20
CODES = {400: 3, 401: 16, 413: 3, 415: 3, 429: 8, 503: 14}  # HTTP status → google.rpc.Code
UNKNOWN = 2
PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass(frozen=True)
class Answer:
    """What the exporter is told."""

    status: int
    body: bytes
    media_type: str


def receive(body: bytes, signal: Signal, content_type: str = PROTOBUF, encoding: str = "") -> Answer:
    """Store what a request holds, all of it or nothing."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (PROTOBUF, JSON):
        return refused(415, f"content type {kind!r} is not read; send {PROTOBUF} or {JSON}", JSON)
    try:
        body = _unpacked(body, encoding)
        document = loads(body) if kind == JSON else decode(body, signal)
        found = [
            Record(f"POST /v1/{signal}", parsed.raw, parsed.row, parsed.reason)
            for parsed in rows(document, datetime.now(UTC))
        ]
    except Rejected as problem:
        return refused(400, str(problem), kind)
    try:
        with session() as db:
            fates = accept(db, SOURCE, found, redactor())
    except SetupError as problem:
        return refused(503, str(problem), kind)
    except DBAPIError as problem:  # its message has the statement's parameters: what was said
        return refused(503, f"the database takes nothing now: {type(problem).__name__}", kind)
    return _accepted(signal, [reason for _, reason in fates if reason], kind)


def _unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its gzip. Raises Rejected where there is none, or it is too large."""
    if encoding.lower() == "gzip":
        stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            body = stream.decompress(body, LARGEST + 1)
        except zlib.error as problem:
            raise Rejected(f"the body is no gzip ({problem})") from problem
        if not stream.eof and len(body) <= LARGEST:
            raise Rejected("the body's gzip breaks off")
    elif encoding not in ("", "identity"):
        raise Rejected(f"content encoding {encoding[:40]!r} is not read; send gzip or none")
    if len(body) > LARGEST:
        raise Rejected(f"the body is over {LARGEST} bytes; let the exporter send smaller batches")
    return body


def _accepted(signal: Signal, reasons: list[str], kind: str) -> Answer:
    told = f"{len(reasons)} kept in quarantine, the first because: {reasons[0]}" if reasons else ""
    count = {"traces": "rejected_spans", "logs": "rejected_log_records"}[signal]
    response = RESPONSES[signal](partial_success={count: len(reasons), "error_message": told} if reasons else None)
    if kind == JSON:
        return Answer(200, json.dumps(MessageToDict(response)).encode(), JSON)
    return Answer(200, response.SerializeToString(), PROTOBUF)


def refused(status: int, message: str, kind: str) -> Answer:
    """A `google.rpc.Status`, in protobuf where the exporter speaks that: code is its field 1, message its field 2."""
    code = CODES.get(status, UNKNOWN)
    if kind != PROTOBUF:
        return Answer(status, json.dumps({"code": code, "message": message}).encode(), JSON)
    text = message.encode()[:2000]
    size = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 127 | 128, len(text) >> 7])
    return Answer(status, b"\x08" + bytes([code]) + b"\x12" + size + text, PROTOBUF)
