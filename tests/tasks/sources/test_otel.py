"""OpenTelemetry files as the collector and exporters leave them; each says the same, however it is packed."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from infra.telemetry import otlp
from tasks.ingest import ingest
from tasks.sources.otel import OTel
from tasks.sources.part import Entry

BODIES = Path(__file__).parents[2] / "infra/telemetry/bodies"
TRACES = (BODIES / "openllmetry-openai-0.62.4.traces.pb").read_bytes()
LOGS = (BODIES / "opentelemetry-openai-v2-2.1b0.logs.pb").read_bytes()


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


def as_json(**layout: Any) -> bytes:
    return json.dumps(otlp.decode(TRACES, "traces"), **layout).encode()


def entries(path: Path, position: dict[str, Any] | None = None) -> list[Entry]:
    (part,) = OTel((str(path),)).parts()
    return list(part.read(position))


@pytest.mark.parametrize(
    "content",
    [TRACES, framed(TRACES), as_json(), as_json(indent=2), as_json() + b"\n", gzip.compress(TRACES)],
    ids=["protobuf", "framed protobuf", "json", "json over lines", "json lines", "gzip"],
)
def test_every_layout_says_the_same(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "spans.dat").write_bytes(content)
    found = [entry.row for entry in entries(tmp_path / "spans.dat") if entry.row is not None]
    assert [row.external_id for row in found][:2] == ["chatcmpl-1", "chatcmpl-2"] and len(found) == 3


def test_traces_and_logs_may_lie_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "all.pb").write_bytes(framed(TRACES, LOGS))
    found = entries(tmp_path / "all.pb")
    assert [entry.row is not None for entry in found] == [True] * 5 + [False]
    assert "no answer and no error" in found[-1].reason


def test_a_file_is_read_on_from_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "all.pb"
    path.write_bytes(framed(TRACES))
    first = entries(path)
    assert [entry.position is not None for entry in first] == [False, False, True]
    path.write_bytes(framed(TRACES, LOGS))
    assert [entry.where for entry in entries(path, first[-1].position)] == [f"{path}:2"] * 3


def test_a_message_that_breaks_off_is_named_and_the_ones_before_are_kept(tmp_path: Path) -> None:
    (tmp_path / "cut.pb").write_bytes(framed(TRACES, LOGS)[:-7])
    *good, bad = entries(tmp_path / "cut.pb")
    assert len(good) == 3 and bad.row is None and "breaks off within a message" in bad.reason
    assert good[-1].position is not None and bad.position is None


def test_ingest_counts_every_row_and_keeps_what_it_cannot_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_json() + b'\n{"resourceSpans": 3}\n')
    (tmp_path / "b.pb").write_bytes(framed(LOGS))
    counts = ingest(OTel((str(tmp_path),)))
    assert (counts["rows"], counts["interactions"], counts["quarantined"]) == (7, 5, 2)
    assert counts["workloads"] == ["weather-bot"]
    assert "resourceSpans is a number, not a list of objects" in counts["problems"][0]
    again = ingest(OTel((str(tmp_path),)))
    assert (again["interactions"], again["duplicates"], again["quarantined"]) == (0, 5, 2)
