"""What could not be understood is understood later, without the file or the exporter that it came from."""

import json
from pathlib import Path

import pytest
from sqlalchemy import func, select

from infra.database.session import session
from infra.database.tables import Interaction, Quarantine
from infra.settings import SetupError
from infra.telemetry.receiver import JSON, receive
from tasks.ingest import ingest
from tasks.sources.jsonl import JSONL
from tasks.sources.quarantine import Quarantined
from tests.tasks.sources.test_jsonl import record

ATTRIBUTES = {
    "gen_ai.operation.name": "chat", "gen_ai.response.id": "r9",
    "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "where is it?"}]}]',
    "gen_ai.output.messages": '[{"role": "assistant", "parts": [{"type": "text", "content": "here"}]}]',
}  # fmt: skip
SPAN = {
    "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "chat",
    "startTimeUnixNano": "1756684800000000000", "endTimeUnixNano": "1756684801000000000",
    "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in ATTRIBUTES.items()],
}  # fmt: skip


def counts() -> tuple[int, int]:
    with session(write=False) as db:
        tables = (Interaction, Quarantine)
        interactions, quarantined = (db.scalar(select(func.count()).select_from(table)) or 0 for table in tables)
    return interactions, quarantined


def test_records_leave_quarantine_once_they_are_understood(database: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    nameless = {key: record(1)[key] for key in ("id", "request", "response")}
    file.write_text("".join(json.dumps(row) + "\n" for row in (record(2), nameless)) + "not json\n")
    ingest(JSONL((str(file),)))
    file.unlink()
    receive(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}).encode(), "traces", JSON)
    assert counts() == (1, 3)
    told = ingest(Quarantined(workload="shop"))
    assert (told["rows"], told["interactions"], told["quarantined"]) == (3, 2, 1) and counts() == (3, 1)
    with session(write=False) as db:
        rows = db.execute(select(Interaction.source, Interaction.external_id).where(Interaction.workload == "shop"))
        assert sorted(tuple(row) for row in rows) == [("jsonl", "1"), ("otel", "r9")]
    with pytest.raises(SetupError, match="nothing in 'jsonl in quarantine' could be understood"):
        ingest(Quarantined(workload="shop"))
    assert counts() == (3, 1)


def test_an_empty_quarantine_and_an_unknown_source_are_one_line(home: Path) -> None:
    with pytest.raises(SetupError, match="nothing of any source lies in quarantine"):
        ingest(Quarantined())
    with pytest.raises(SetupError, match="'jsnol' does not exist; known are jsonl"):
        ingest(Quarantined(("jsnol",)))
