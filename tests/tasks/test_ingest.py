"""Nothing is lost, nothing is counted twice: in any mix of lines, twice, at once, and after a kill."""

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from infra.database.session import session
from infra.database.tables import Base, Cursor, Feedback, Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest, workloads
from tasks.sources.jsonl import JSONL
from tests.conftest import living_in
from tests.tasks.sources.test_jsonl import record, text

ROOT = Path(__file__).parent.parent.parent


def thumb(about: int, value: int = 1) -> bytes:
    return (
        json.dumps({"record_id": str(about), "timestamp": 1756684900, "kind": "thumb", "value": value}).encode() + b"\n"
    )


def count(table: type[Base]) -> int:
    with session(write=False) as db:
        return db.scalar(select(func.count()).select_from(table)) or 0


def stored() -> list[list[Any]]:
    """What the database holds, without the numbers and times that it gave itself."""
    with session(write=False) as db:
        return [
            sorted(db.execute(select(*columns)), key=repr)
            for columns in (
                (Interaction.source, Interaction.external_id, Interaction.request["messages"], Interaction.at),
                (Feedback.source, Feedback.external_id, Feedback.record_id),
                (Quarantine.digest, Quarantine.reason),
            )
        ]


def total(counts: dict[str, Any]) -> int:
    return sum(counts[key] for key in ("interactions", "feedback", "duplicates", "quarantined"))


GOOD = st.integers(0, 8).map(lambda n: text(n).rstrip())
FEEDBACK = st.integers(0, 8).map(lambda n: thumb(n).rstrip())
TAKEN = st.integers(0, 8).map(lambda n: json.dumps({**record(n + 1), "id": str(n)}).encode())
NAMELESS = st.integers(0, 3).map(lambda n: json.dumps({k: record(n)[k] for k in ("request", "response")}).encode())
# A file that begins as gzip does is read as that, and an event of a stream that says nothing is no record.
OTHER = (b"\x1f\x8b", b"data:")
JUNK = st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"?")).filter(
    lambda raw: not raw.startswith(OTHER)
) | st.sampled_from([b"{}", b"[]", b"null", b'"', b" "])


@given(
    st.lists(st.lists(GOOD | FEEDBACK | TAKEN | NAMELESS | JUNK, min_size=1, max_size=25), min_size=1, max_size=3),
    st.booleans(),
)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_row_of_any_mix_is_accounted_for_and_reading_again_adds_nothing(
    files: list[list[bytes]], zipped: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, living_in(Path(folder) / "home", TEACHER=""):
        for n, lines in enumerate(files):
            content = b"\n".join(lines) + b"\n"
            (Path(folder) / f"{n}.jsonl").write_bytes(gzip.compress(content) if zipped else content)
        rows = sum(1 for lines in files for line in lines if line.strip())
        source = JSONL((folder,))
        try:
            counts = ingest(source)
        except SetupError as problem:
            assert "nothing in" in str(problem) or "no record" in str(problem)
            assert not count(Interaction) and not count(Feedback) and bool(count(Quarantine)) == bool(rows)
            return
        assert counts["rows"] == rows == total(counts)
        assert (counts["interactions"], counts["feedback"]) == (count(Interaction), count(Feedback))
        before = stored()
        again = ingest(source)
        assert (again["rows"], again["interactions"], again["feedback"]) == (rows, 0, 0)
        assert again["quarantined"] == counts["quarantined"] and total(again) == rows
        assert stored() == before


def test_mixed_files_are_stored_in_both_databases(database: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(thumb(2, -1) + text(1, 2) + b"not json\n" + text(1) + thumb(1))
    counts = ingest(JSONL((str(tmp_path / "a.jsonl"),)))
    assert {k: counts[k] for k in ("rows", "interactions", "feedback", "duplicates", "quarantined")} == {
        "rows": 6, "interactions": 2, "feedback": 2, "duplicates": 1, "quarantined": 1,
    }  # fmt: skip
    assert counts["workloads"] == workloads() == ["w"]
    with session(write=False) as db:
        bad = db.scalars(select(Quarantine)).one()
        assert (bad.raw, bad.source, bad.position) == (b"not json", "jsonl", f"{tmp_path / 'a.jsonl'}:4")
        assert "no JSON" in bad.reason and counts["problems"] == [f"{bad.position}: {bad.reason}"]
        joined = select(Interaction.external_id, Feedback.value).join(
            Feedback, Feedback.record_id == Interaction.external_id
        )
        assert sorted(db.execute(joined)) == [("1", 1), ("2", -1)]


def test_a_copy_under_another_name_adds_nothing(database: str, tmp_path: Path) -> None:
    nameless = [{k: v for k, v in record(n).items() if k != "id"} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nameless) + "junk\n")
    ingest(JSONL((str(tmp_path / "a.jsonl"),)))
    before = stored()
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    counts = ingest(JSONL((str(tmp_path / "b.jsonl"),)))
    assert (counts["duplicates"], counts["quarantined"]) == (3, 1) and stored() == before


def test_two_ingests_at_once_add_each_row_once(database: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(3000)) + b"".join(thumb(n) for n in range(500)) + b"junk\n")
    code = "import sys, json\nfrom tasks.ingest import ingest\nfrom tasks.sources.jsonl import JSONL\n" + (
        "print(json.dumps(ingest(JSONL((sys.argv[1],)))))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "a.jsonl")],
            cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [child.communicate() for child in children]
    assert [error for _, error in outputs] == [b"", b""]
    counts = [json.loads(out) for out, _ in outputs]
    assert sum(c["interactions"] for c in counts) == count(Interaction) == 3000
    assert sum(c["feedback"] for c in counts) == count(Feedback) == 500
    assert [total(c) for c in counts] == [3501, 3501] and count(Quarantine) == 1


def test_a_killed_ingest_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(4000)))
    code = (
        "import sys, time\nimport tasks.ingest\nfrom tasks.sources.jsonl import JSONL\n"
        "def slow(done, total, what):\n    print(done, flush=True)\n    time.sleep(60)\n"
        "tasks.ingest.ingest(JSONL((sys.argv[1],)), progress=slow)"
    )
    source = JSONL((str(tmp_path / "a.jsonl"),))
    with living_in(tmp_path / "killed", TEACHER=""):
        child = subprocess.Popen(
            [sys.executable, "-c", code, source.paths[0]], cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE
        )
        assert child.stdout is not None and child.stdout.readline()  # the first batch is stored
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert count(Interaction) == 1000
        with session(write=False) as db:
            assert db.scalars(select(Cursor)).one().position["rows"] == 1000
        counts = ingest(source)
        assert (counts["rows"], counts["interactions"], counts["duplicates"]) == (4000, 3000, 1000)
        resumed = stored()
    with living_in(tmp_path / "unbroken", TEACHER=""):
        ingest(source)
        assert stored() == resumed


def test_a_batch_and_its_cursor_are_one_transaction(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.ingest

    (tmp_path / "a.jsonl").write_bytes(text(1, 2))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(tasks.ingest, "move_cursor", fail)
        ingest(JSONL((str(tmp_path / "a.jsonl"),)))
    assert not count(Interaction) and not count(Cursor)


def test_records_without_workload_leave_quarantine_when_it_is_named(database: str, tmp_path: Path) -> None:
    rows = [{k: record(n)[k] for k in ("request", "response")} for n in range(3)]
    file = tmp_path / "bare.jsonl"
    file.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + thumb(1))
    counts = ingest(JSONL((str(file),)))
    assert counts["quarantined"] == 3 and "`workload` option" in counts["problems"][0]
    counts = ingest(JSONL((str(file),), workload="shop"))
    assert (counts["interactions"], counts["duplicates"], counts["quarantined"]) == (3, 1, 0)
    assert workloads() == ["shop"] and count(Quarantine) == 0


def test_an_id_that_is_taken_is_kept_in_quarantine_not_dropped(database: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record(1)) + "\n" + json.dumps({**record(2), "id": "1"}) + "\n")
    counts = ingest(JSONL((str(tmp_path / "a.jsonl"),)))
    assert (counts["interactions"], counts["quarantined"]) == (1, 1)
    assert "id '1' is that of another record" in counts["problems"][0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n \n\n", "no record in"),
        (bytes(range(256)) * 40, "could be understood"),
        (b'{"request": {"messages": [{"role": "user", "content": "x"}]}, "expected": {}}\n', "never trains"),
        (gzip.compress(text(*range(50)), mtime=0)[:10], "breaks off"),
    ],
)
def test_a_file_that_says_nothing_is_one_line_and_its_bytes_are_kept(
    home: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for _ in range(2):
        with pytest.raises(SetupError, match=said) as caught:
            ingest(JSONL((str(tmp_path / "a.jsonl"),)))
        assert "a.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    assert bool(count(Quarantine)) == bool(content.strip())


def test_a_50_mb_line_costs_one_quarantined_row(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(text(1) + b'{"request": "' + b"x" * (50 << 20) + b'"}\n' + text(2))
    counts = ingest(JSONL((str(file),)))
    assert (counts["rows"], counts["interactions"], counts["quarantined"]) == (3, 2, 1)
    with session(write=False) as db:
        assert len(db.scalars(select(Quarantine.raw)).one()) == 64 << 10


SHARED_ROWS = {
    "banking77": ("telemetry.jsonl.gz", 10003, "feedback.jsonl", 1998),
    "snips": ("telemetry.jsonl.gz", 6000, "feedback.jsonl", 1194),
    "fsi_news": ("telemetry.jsonl.gz", 500, None, 0),
    "tensorzero": ("*.telemetry.jsonl.gz", 2008, "*.feedback.jsonl.gz", 3003),
}


@pytest.mark.parametrize("name", SHARED_ROWS)
def test_real_traffic_is_ingested_to_the_row(home: Path, shared: Path, name: str) -> None:
    telemetry, interactions, opinions, said = SHARED_ROWS[name]
    paths = [str(shared / name / pattern) for pattern in (opinions, telemetry) if pattern]
    started = time.monotonic()
    counts = ingest(JSONL(tuple(paths)))
    assert time.monotonic() - started < 60
    assert counts["rows"] == interactions + said == total(counts)
    assert (counts["interactions"], counts["feedback"]) == (interactions, said)
    with session(write=False) as db:
        kinds = Counter(db.scalars(select(Feedback.kind)))
    assert sum(kinds.values()) == said


def test_a_whole_folder_with_its_golden_file_keeps_the_golden_out(home: Path, shared: Path) -> None:
    counts = ingest(JSONL((str(shared / "fsi_news"),)))
    assert (counts["rows"], counts["interactions"], counts["quarantined"]) == (1525, 500, 1025)
