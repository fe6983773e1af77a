"""What the gateway counts, and that a queue which is full, or a database that is away, costs nobody an answer."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.database.tables import Interaction
from infra.gateway import record, spool
from infra.gateway.journal import Journal
from infra.gateway.logs import Lines, Text
from infra.gateway.metrics import MOST, Metrics
from infra.settings import settings
from tests.infra.gateway.conftest import Teacher, eventually
from tests.infra.gateway.test_app import counted, rows
from tests.infra.gateway.test_calls import ask, streamed
from tests.infra.gateway.test_record import drained, writing


def crowd(url: str, customers: int) -> list[str]:
    with ThreadPoolExecutor(8) as some:
        answers = list(some.map(lambda _: ask(url), range(customers)))
    assert [answer.status_code for answer in answers] == [200] * customers
    return [answer.json()["id"] for answer in answers]


def test_calls_are_counted_by_what_came_of_them(url: str, teacher: type[Teacher]) -> None:
    teacher.scripts["shop"] = Teacher.whole
    teacher.scripts["down"] = lambda self: self.reply(500, {"error": {"message": "down"}})
    ask(url), ask(url), streamed(url), ask(url, "down")
    httpx.post(f"{url}/v1/chat/completions", content=b"no JSON")
    about = ask(url).json()["id"]
    httpx.post(f"{url}/v1/feedback", json={"record_id": about, "kind": "thumb", "value": 1})
    assert len(rows(Interaction)) == 5
    seen = counted(url)
    assert {name: value for name, value in seen.items() if name.startswith("flywheel_requests_total")} == {
        "flywheel_requests_total ok shop teacher": 4,
        "flywheel_requests_total down error teacher": 1,
        "flywheel_requests_total   refused": 1,
    }
    assert seen["flywheel_request_seconds_count shop teacher"] == 4
    assert seen["flywheel_first_token_seconds_count shop teacher"] == 1
    assert seen["flywheel_feedback_total thumb"] == 1
    assert seen["flywheel_records_total stored"] == 6 and seen["flywheel_records_total lost"] == 0
    assert (seen["flywheel_database_up"], seen["flywheel_open_streams"], seen["flywheel_records_waiting"]) == (1, 0, 0)


def test_clients_cannot_make_any_number_of_series() -> None:
    metrics = Metrics()
    labels = {metrics.workload(f"workload {n}") for n in range(MOST + 50)}
    assert len(labels) == MOST + 1 and "other" in labels and metrics.workload("workload 1") == "workload 1"


def test_a_database_that_is_away_under_load_costs_no_answer_and_no_record(
    open_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "STORE_SECONDS", 0.3)
    with open_house() as url:
        asked = crowd(url, 10)
        assert len(rows(Interaction)) == 10
        with writing():
            asked += crowd(url, 40)
            eventually(lambda: counted(url)["flywheel_database_up"] == 0)
            asked += crowd(url, 40)
            assert counted(url)["flywheel_spool_bytes"] > 0 and httpx.get(f"{url}/readyz").status_code == 200
        eventually(drained)
        eventually(lambda: counted(url)["flywheel_database_up"] == 1)
        assert sorted(row.external_id for row in rows(Interaction)) == sorted(asked)
        assert counted(url)["flywheel_records_total lost"] == 0


def test_a_queue_that_is_full_leaves_the_rest_to_the_journal(open_house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "QUEUE_BYTES", 2000)
    with open_house() as url:
        with writing():
            asked = crowd(url, 30)
            seen = counted(url)
            assert seen["flywheel_records_waiting"] <= 10 and seen["flywheel_records_total spooled"] >= 20
        eventually(drained)
        assert sorted(row.external_id for row in rows(Interaction)) == sorted(asked)


def test_where_neither_database_nor_spool_takes_anything_it_is_not_ready(
    open_house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "STORE_SECONDS", 0.3)
    with open_house() as url:
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        spool.folder().write_text("in the way")
        with writing():
            asked = crowd(url, 3)
            said = eventually(lambda: (r := httpx.get(f"{url}/readyz")).status_code == 503 and r.json()["status"])
            assert "nothing can be recorded" in said
        eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        assert sorted(row.external_id for row in rows(Interaction)) == sorted(asked)


def test_the_journal_of_a_gateway_that_lives_is_left_to_it(home: Path) -> None:
    one, two = Journal(), Journal()
    for journal in (one, two):
        journal.append(b"{}")
    assert spool.files(spool.folder()) == []
    one.close()
    assert [spool.owner(file) for file in spool.files(spool.folder())] == [one.name]


def test_a_file_is_not_deleted_before_the_database_has_its_lines_on_the_disk(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal()
    journal.append(b'{"record_id": "a", "kind": "thumb", "value": 1, "id": "1"}')
    journal.close()
    (file,) = spool.files(spool.folder())
    spool.put([])  # what a home has from the first time on
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert file.exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert spool.drain(file) == ["stored"] and not file.exists()
    assert synced == [f"{settings().home / 'flywheel.db'}-wal", str(settings().home)]


def test_a_line_of_the_log_is_json_and_keeps_an_exceptions_words_to_itself() -> None:
    try:
        raise ValueError(f"a {'sec'}ret")
    except ValueError as problem:
        said = {"name": "x", "levelname": "ERROR", "msg": "it %s", "args": ("broke",)}
        told = logging.makeLogRecord(said | {"status": 500, "odd": {1, 2}, "_ray_timestamp_ns": 1})
        told.exc_info = (ValueError, problem, problem.__traceback__)
    line = json.loads(Lines().format(told))
    assert (line["message"], line["level"], line["logger"], line["odd"]) == ("it broke", "ERROR", "x", "{1, 2}")
    assert "ValueError" in line["exception"] and "secret" not in Lines().format(told) + Text().format(told)
    assert Text().format(told).splitlines()[0].endswith("ERROR   it broke status=500 odd={1, 2}")
