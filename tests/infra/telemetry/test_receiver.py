"""OTLP over HTTP with the OpenTelemetry SDK's own exporter on the other side of a socket."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from infra.database.session import session
from infra.database.tables import Feedback, Interaction, Quarantine
from infra.gateway.app import create_app
from infra.telemetry import receiver
from tests.conftest import living_in
from tests.infra.gateway.test_app import listening, rows
from tests.infra.telemetry.test_genai import BODIES, log, span

PROTOBUF = {"content-type": "application/x-protobuf"}
TRACES = (BODIES / "openinference-openai-0.1.66.traces.pb").read_bytes()


@pytest.fixture
def url(home: Path) -> Iterator[str]:
    with listening(create_app()) as url:
        yield url


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_a_real_sdk_exports_to_the_gateway(url: str, compression: Compression) -> None:
    results = []

    class Watched(OTLPSpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            results.append(super().export(spans))
            return results[-1]

    provider = TracerProvider(resource=Resource({"service.name": "shop", "flywheel.workload": "shop.assistant"}))
    provider.add_span_processor(SimpleSpanProcessor(Watched(f"{url}/v1/traces", compression=compression)))
    with provider.get_tracer("app").start_as_current_span("chat m") as call:
        call.set_attribute("gen_ai.operation.name", "chat")
        call.set_attribute("gen_ai.response.id", "resp-1")
        call.set_attribute(
            "gen_ai.input.messages", json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi ü"}]}])
        )
        call.set_attribute(
            "gen_ai.output.messages", json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "ho"}]}])
        )
        call.add_event("gen_ai.evaluation.result", {"gen_ai.evaluation.score.label": "good"})
    provider.shutdown()
    assert results == [SpanExportResult.SUCCESS]
    (call_,), (opinion,) = rows(Interaction), rows(Feedback)
    assert (call_.source, call_.external_id, call_.workload) == ("otel", "resp-1", "shop.assistant")
    assert call_.request["messages"] == [{"role": "user", "content": "hi ü"}]
    assert (opinion.record_id, opinion.kind, opinion.value) == ("resp-1", "thumb", 1)


def test_the_same_batch_again_adds_nothing_whatever_its_encoding(url: str) -> None:
    from infra.telemetry import otlp

    as_json = json.dumps(otlp.decode(TRACES, "traces")).encode()
    zipped = {**PROTOBUF, "content-encoding": "gzip"}
    for body, headers in (
        (TRACES, PROTOBUF),
        (as_json, {"content-type": "application/json"}),
        (gzip.compress(TRACES), zipped),
    ):
        answer = httpx.post(f"{url}/v1/traces", content=body, headers=headers)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(headers["content-type"])
    assert len(rows(Interaction)) == 3


def test_what_cannot_be_understood_is_kept_and_told(url: str) -> None:
    nameless = json.dumps(log("gen_ai.evaluation.result", **{"gen_ai.evaluation.score.value": 1.0})).encode()
    answer = httpx.post(f"{url}/v1/logs", content=nameless, headers={"content-type": "application/json"})
    partial = answer.json()["partialSuccess"]
    assert partial["rejectedLogRecords"] == "1" and "names neither" in partial["errorMessage"]
    traces = (BODIES / "opentelemetry-openai-v2-2.1b0.traces.pb").read_bytes()
    told = ExportTraceServiceResponse.FromString(
        httpx.post(f"{url}/v1/traces", content=traces, headers=PROTOBUF).content
    )
    assert told.partial_success.rejected_spans == 3
    kept = rows(Quarantine)
    assert len(kept) == 4 and all(entry.source == "otel" for entry in kept)
    assert "resourceSpans" in json.loads(kept[1].raw) and "CAPTURE_MESSAGE_CONTENT" in kept[1].reason


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"\xff\xff", PROTOBUF, 400, b"no OTLP traces in protobuf"),
        (b"{", {"content-type": "application/json"}, 400, b"no JSON"),
        (b"[]", {"content-type": "application/json"}, 400, b"an OTLP document is a list"),
        (TRACES, {"content-type": "text/plain"}, 415, b"'text/plain' is not read"),
        (TRACES, {**PROTOBUF, "content-encoding": "br"}, 400, b"'br' is not read"),
        (TRACES, {**PROTOBUF, "content-encoding": "gzip"}, 400, b"is no gzip"),
        (gzip.compress(TRACES)[:-20], {**PROTOBUF, "content-encoding": "gzip"}, 400, b"breaks off"),
    ],
)
def test_a_body_that_is_no_otlp_is_refused_in_one_line(
    url: str, body: bytes, headers: dict[str, str], status: int, said: bytes
) -> None:
    answer = httpx.post(f"{url}/v1/traces", content=body, headers=headers)
    assert answer.status_code == status and said in answer.content
    with session(write=False) as db:
        assert db.query(Interaction).count() == db.query(Quarantine).count() == 0


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "LARGEST", 1000)
    answer = receiver.receive(gzip.compress(bytes(10**7)), "traces", encoding="gzip")
    assert answer.status == 400 and b"over 1000 bytes" in answer.body


def test_a_refusal_in_protobuf_is_a_status(home: Path) -> None:
    from google.rpc.status_pb2 import Status

    for said in ("short", "x" * 127, "y" * 128, "z" * 1999):
        told = Status.FromString(receiver.refused(400, said, receiver.PROTOBUF).body)
        assert (told.code, told.message) == (3, said)


def test_a_database_that_is_away_is_told_as_503_so_that_exporters_try_again(home: Path) -> None:
    with living_in(home, DATABASE="postgresql://nobody@127.0.0.1:9/none"):
        assert receiver.receive(TRACES, "traces").status == 503
    receiver.receive(TRACES, "traces")
    with session() as db:
        db.connection().exec_driver_sql("ALTER TABLE interaction RENAME COLUMN digest TO mark")
    answer = receiver.receive(TRACES, "traces")
    assert answer.status == 503 and b"INSERT" not in answer.body


def test_spans_without_a_call_are_taken_and_forgotten(url: str) -> None:
    body = json.dumps(span(**{"http.request.method": "GET"})).encode()
    answer = httpx.post(f"{url}/v1/traces", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {})
    assert rows(Interaction) == rows(Quarantine) == []
