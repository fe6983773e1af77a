"""What a process beside reads is stored as if it were read here, whoever of the two is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Interaction, Quarantine
from infra.privacy.pseudonyms import TOKEN
from infra.privacy.redaction import redactor
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources import ahead
from tasks.sources.jsonl import JSONL
from tests.conftest import living_in
from tests.tasks.sources.test_jsonl import record, text
from tests.tasks.test_faults import state
from tests.tasks.test_ingest import ROOT, count, thumb, total


def nested(depth: int) -> bytes:
    """An address that no walk reaches."""
    inner = b"[" * depth + b'"ann@example.com"' + b"]" * depth
    return json.dumps({**record(7), "id": "deep"}).encode().replace(b'"messages"', b'"x": ' + inner + b', "messages"')


def said(n: int) -> bytes:
    row = record(n)
    row["request"]["messages"][0]["content"] = f"I am ann{n}@example.com, question {n}"
    return json.dumps({**row, "client_id": f"ann{n}@example.com"}).encode() + b"\n"


def mixed() -> bytes:
    """Three batches of all that may become of a record, and a line that is half written."""
    taken = json.dumps({**record(5), "id": "3", "client_id": "bob@example.com"}).encode() + b"\n"
    faults = [b"no JSON of ann@example.com\n", taken, nested(1015) + b"\n", b"\n", text(1)]
    rows = [text(n) if n % 7 else said(n) for n in range(2500)]
    return b"".join([*rows[:1500], *faults, *rows[1500:], *(thumb(n) for n in range(300)), text(9000)[:-20]])


def test_it_is_stored_as_if_it_were_read_here(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    told, found = [], []
    for large in (0, 1 << 40):
        monkeypatch.setattr(ahead, "LARGE", large)
        file.write_bytes(mixed())
        counts = ingest(JSONL((str(file),)))
        file.write_bytes(mixed() + text(9000)[-20:] + text(9001))
        told.append((counts, ingest(JSONL((str(file),)))))
        found.append(state())
        with session() as db:
            for table in ("interaction", "feedback", "quarantine", "cursor"):
                db.connection().exec_driver_sql(f"DELETE FROM {table}")
    assert told[0] == told[1] and found[0] == found[1]
    first, second = told[0]
    assert (first["interactions"], first["feedback"], first["duplicates"], first["quarantined"]) == (2500, 300, 1, 4)
    assert (second["interactions"], second["quarantined"], total(second)) == (2, 3, second["rows"])


def test_it_sends_nothing_that_redaction_takes_away(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "LARGE", 0)
    (tmp_path / "a.jsonl").write_bytes(mixed())
    ingest(JSONL((str(tmp_path / "a.jsonl"),)), redact="all")
    with session(write=False) as db:
        stored = [*db.scalars(select(Interaction.request)), *db.scalars(select(Interaction.client))]
        stored += [*db.scalars(select(Quarantine.raw)), *db.scalars(select(Quarantine.reason))]
    written = re.findall(r"[\w.]+@[\w.]+", str(stored))
    assert len(written) > 100 and all(TOKEN.fullmatch(address) for address in written)


def test_packages_that_lie_where_it_is_run_are_not_taken_for_ours(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "LARGE", 0)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "a.jsonl").write_bytes(text(1))
    monkeypatch.chdir(tmp_path)
    assert ingest(JSONL(("a.jsonl",)))["interactions"] == 1


def test_a_reader_that_is_killed_is_one_line_and_the_ingest_goes_on_later(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "LARGE", 0)
    (tmp_path / "a.jsonl").write_bytes(text(*range(20_000)))
    source = JSONL((str(tmp_path / "a.jsonl"),))

    def kill(done: int, *_: object) -> None:
        for child in psutil.Process().children():
            child.kill()

    with pytest.raises(SetupError, match=r"ended with -9; what it gave is stored, run again") as problem:
        ingest(source, progress=kill)
    assert "\n" not in str(problem.value) and 0 < (before := count(Interaction)) < 20_000
    counts = ingest(source)
    assert (counts["rows"], counts["interactions"]) == (20_000, 20_000 - before)


def test_a_reader_goes_when_the_one_that_stores_is_killed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(20_000)))
    code = (
        "import sys, time\nimport tasks.sources.ahead\nimport tasks.ingest\nfrom tasks.sources.jsonl import JSONL\n"
        "tasks.sources.ahead.LARGE = 0\n"
        "def slow(*_):\n    print('stored', flush=True)\n    time.sleep(60)\n"
        "tasks.ingest.ingest(JSONL((sys.argv[1],)), progress=slow)"
    )
    with living_in(tmp_path / "home", TEACHER=""):
        storing = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "a.jsonl")],
            cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with storing:
            assert storing.stdout is not None and storing.stdout.readline()
            assert len(psutil.Process(storing.pid).children()) == 1
            storing.send_signal(signal.SIGKILL)
            errors = storing.communicate(timeout=60)[1]  # ends when both have
        assert errors == b""


def test_what_the_reader_cannot_read_is_said_here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LARGE", 0)
    (tmp_path / "a.jsonl").write_bytes(text(1))
    (part,) = JSONL((str(tmp_path / "a.jsonl"),)).parts()
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(SetupError, match="does not exist"):
        list(ahead.batches(part, None, redactor()))
