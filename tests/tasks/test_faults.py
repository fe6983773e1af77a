"""What production does to an ingest: kills, races, restarts, full disks, rotated logs and records of any shape.

The processes are real ones, killed and restarted at moments that nobody chose; each test says what must hold of the
database whatever the moment was.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Text, cast, delete, select

import tasks.ingest
from infra.database.messages import ROLES
from infra.database.session import session
from infra.database.tables import Base, Cursor, Feedback, Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources.jsonl import JSONL
from tasks.sources.quarantine import Quarantined
from tests.conftest import NUMBERS, cluster, living_in, new_database
from tests.tasks.sources.test_jsonl import record, text
from tests.tasks.test_ingest import ROOT, count, thumb, total

SAID = select(Interaction.external_id, Interaction.request)
GIVEN_BY_THE_DATABASE = ("id", "created", "moved")
CHILD = (
    "import json, sys\n"
    "from tasks.ingest import ingest\n"
    "from tasks.sources.jsonl import JSONL\n"
    "paths, workload = sys.argv[2:], sys.argv[1]\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "counts = ingest(JSONL(tuple(paths), workload=workload), progress=lambda done, *_: print(done, flush=True))\n"
    "print(json.dumps(counts))"
)


class Child:
    """An ingest in a process of its own, which waits for `go` and tells how many bytes it has stored."""

    def __init__(self, *paths: Path, workload: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, workload, *map(str, paths)], cwd=ROOT, env=dict(os.environ), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self) -> str:
        """The next line; nothing at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def reaches(self, done: float) -> bool:
        """Whether it gets that far."""
        while (line := self.said()).isdigit():
            if int(line) >= done:
                return True
        return False

    def counts(self) -> dict[str, Any]:
        """Its report."""
        out, errors = self.process.communicate()
        assert (self.process.returncode, errors) == (0, "")
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told


def state(*tables: type[Base], ordered: bool = True) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and the hash of all that they say, in their order or in any.

    JSON is taken as the text that is stored, without the numbers and times that the database gave.
    """
    found = {}
    for table in tables or (Interaction, Feedback, Quarantine, Cursor):
        columns = [column for column in table.__table__.columns if column.name not in GIVEN_BY_THE_DATABASE]
        wanted = select(*(cast(c, Text) if isinstance(c.type, JSON) else c for c in columns))
        wanted = wanted.order_by(table.__table__.c.id) if ordered and "id" in table.__table__.c else wanted
        whole, number = hashlib.sha256(), 0
        with session(write=False) as db:
            rows = map(repr, db.execute(wanted))
            for row in rows if ordered and "id" in table.__table__.c else sorted(rows):
                whole.update(row.encode("utf-8", "backslashreplace"))
                number += 1
        found[table.__tablename__] = (number, whole.hexdigest())
    return found


def together(children: list[Child]) -> list[dict[str, Any]]:
    """The reports of ingests that begin at the same instant."""
    with ExitStack() as stack:
        for child in children:
            stack.enter_context(child)
        for child in children:
            assert child.said() == "ready"
        for child in children:
            child.go()
        return [child.counts() for child in children]


def emptied() -> None:
    with session() as db:
        for table in (Interaction, Feedback, Quarantine, Cursor):
            db.execute(delete(table))


def test_twenty_kills_leave_what_an_unbroken_ingest_leaves(database: str, tmp_path: Path) -> None:
    """One log of 90,000 good records, which is gone on with, and one of 10,000 with faults, which is begun again."""
    opinions = {n: thumb(n, (-1) ** n) for n in range(9, 90_000, 10)}
    (tmp_path / "a.jsonl").write_bytes(b"".join(opinions.get(n) or text(n) for n in range(90_000)))
    with (tmp_path / "b.jsonl").open("wb") as file:
        for n in range(100_000, 110_000):
            faults = {0: b"no JSON %d\n" % n, 1: text(100_010), 2: text(n).replace(b'"id": "', b'"id": "7", "was": "')}
            file.write(faults.get(n % 100, text(n)))
    sizes = [(tmp_path / name).stat().st_size for name in ("a.jsonl", "b.jsonl")]
    chance = random.Random(17)
    early = [0.0] * 3
    for point in early + sorted(chance.uniform(0, 0.97) for _ in range(17)):
        with Child(tmp_path) as child:
            assert child.said() == "ready"
            child.go()
            if point:
                assert child.reaches(point * sum(sizes)), child.process.communicate()
                time.sleep(chance.uniform(0, 0.15))
            else:  # while the database is made, or the first batch
                time.sleep(chance.uniform(0, 0.6))
            child.process.kill()
    counts = ingest(JSONL((str(tmp_path),)))
    assert counts["rows"] == total(counts) == 100_000 and counts["quarantined"] == 200
    killed = state()
    emptied()
    counts = ingest(JSONL((str(tmp_path),)))
    assert counts["rows"] == total(counts) == 100_000
    assert (counts["interactions"], counts["feedback"], counts["duplicates"], counts["quarantined"]) == (
        90_700, 9_000, 100, 200,
    )  # fmt: skip
    assert state() == killed


@pytest.mark.parametrize("processes", [2, 8])
def test_ingests_of_overlapping_files_at_once_lose_and_double_nothing(
    database: str, tmp_path: Path, processes: int
) -> None:
    """Each file has most of the records, in an order of its own; of every tenth id it says one of three things."""
    chance = random.Random(processes)
    given: set[tuple[str, str]] = set()
    files = [tmp_path / f"{number}.jsonl" for number in range(min(processes, 4))]
    for number, file in enumerate(files):
        lines = [b"no JSON %d\n" % n for n in range(20)] + [thumb(n) for n in range(0, 2000, 7)]
        for n in chance.sample(range(2000), 1300):
            variant = number % 3 if n % 10 == 0 else 0
            said = {"request": {"messages": [{"role": "user", "content": f"question {n}, {variant}"}]}}
            lines.append(json.dumps({**record(n), **said}).encode() + b"\n")
            given.add((str(n), f"question {n}, {variant}"))
        chance.shuffle(lines)
        file.write_bytes(b"".join(lines))
    # Of eight, two read each file and meet at its cursor as well.
    told = together([Child(file) for file in (files * 2)[:processes]])
    assert all(one["rows"] == 1606 == total(one) for one in told)
    assert sum(one["interactions"] for one in told) == count(Interaction)
    assert sum(one["feedback"] for one in told) == count(Feedback) == 286
    with session(write=False) as db:
        stored = {number: asked["messages"][0]["content"] for number, asked in db.execute(SAID)}
        refused = [row.raw for row in db.scalars(select(Quarantine))]
    records = [json.loads(raw) for raw in refused if not raw.startswith(b"no JSON")]
    taken = {(one["id"], one["request"]["messages"][0]["content"]) for one in records}
    # Which of the things that are said of an id is stored is a race; that each is kept is none.
    assert len(stored) == count(Interaction) and set(stored.items()) | taken == given
    assert not set(stored.items()) & taken and len(refused) == len(taken) + 20


def test_what_many_understand_at_once_leaves_quarantine_without_a_deadlock(database: str, tmp_path: Path) -> None:
    """The same records in different orders, all in quarantine for want of a workload."""
    chance = random.Random(5)
    lines = [json.dumps({k: record(n)[k] for k in ("id", "request", "response")}).encode() for n in range(3000)]
    files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    for file in files:
        file.write_bytes(b"\n".join([*chance.sample(lines, len(lines)), text(9999)]))
    ingest(JSONL((str(tmp_path),)))
    assert (count(Interaction), count(Quarantine)) == (1, 3000)
    told = together([Child(*chance.sample(files, 4), workload="shop") for _ in range(4)])
    assert sum(one["interactions"] for one in told) == 3000 and [total(one) for one in told] == [12_004] * 4
    assert (count(Interaction), count(Quarantine)) == (3001, 0)


def test_postgresql_restarted_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(30_000)) + b"no JSON\n")
    size = (tmp_path / "a.jsonl").stat().st_size
    with cluster() as server, living_in(tmp_path / "home", TEACHER="", DATABASE=new_database(server.url)):
        with Child(tmp_path / "a.jsonl") as child:
            assert child.said() == "ready"
            child.go()
            for part in (0.1, 0.4, 0.7):
                assert child.reaches(part * size)
                server.control("restart")
            told = child.counts()
        # A batch whose commit was cut off may have been stored all the same; it is told as duplicates then.
        assert told["rows"] == total(told) == 30_001 and told["interactions"] >= 27_000
        survived = state()
        emptied()
        ingest(JSONL((str(tmp_path / "a.jsonl"),)))
        assert state() == survived


def test_postgresql_that_stays_away_is_one_line_and_the_ingest_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(5000)))
    source = JSONL((str(tmp_path / "a.jsonl"),))
    monkeypatch.setattr(tasks.ingest, "PAUSES", (0.01, 0.01))
    with cluster() as server, living_in(tmp_path / "home", TEACHER="", DATABASE=new_database(server.url)):
        stopped: list[int] = []

        def stop(done: int, *_: object) -> None:
            if not stopped:
                server.control("stop")
            stopped.append(done)

        with pytest.raises(SetupError, match=r"broke off .*is undone; check that it is running and try again") as said:
            ingest(source, progress=stop)
        assert "\n" not in str(said.value) and len(stopped) == 1
        server.control("start")
        assert count(Interaction) == 1000
        counts = ingest(source)
        assert (counts["rows"], counts["interactions"], counts["duplicates"]) == (5000, 4000, 1000)
        resumed = state()
        emptied()
        ingest(source)
        assert state() == resumed


def test_a_disk_that_fills_up_in_the_middle_is_one_line_and_the_ingest_goes_on_later(
    small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(*range(12_000)) + b"no JSON\n")
    source = JSONL((str(tmp_path / "a.jsonl"),))
    subprocess.run(["mount", "-o", "remount,size=6m", small_disk], check=True)
    with living_in(small_disk / "home", TEACHER=""):
        for _ in range(2):
            with pytest.raises(SetupError, match=r"disk full: .*FLYWHEEL_HOME") as said:
                ingest(source)
            assert "\n" not in str(said.value)
            with session(write=False) as db:
                reached = db.scalars(select(Cursor)).one().position["rows"]
            assert 0 < reached < 12_000 and count(Interaction) == reached
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        counts = ingest(source)
        assert (counts["rows"], counts["interactions"]) == (12_001, 12_000 - reached)
        resumed = state()
    with living_in(tmp_path / "unbroken", TEACHER=""):
        ingest(source)
        assert state() == resumed


def test_a_postgresql_whose_disk_is_full_is_one_line(postgres: str, tmp_path: Path) -> None:
    """Its disk is not ours to fill: a trigger says what the server would, in the midst of a batch."""
    (tmp_path / "a.jsonl").write_bytes(text(*range(2000)))
    source = JSONL((str(tmp_path / "a.jsonl"),))
    full = (
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'could not extend file \"base/1/2\": No space left on device' USING ERRCODE = '53100'; END $$"
    )
    when = "BEFORE INSERT ON interaction FOR EACH ROW WHEN (NEW.external_id = '1500') EXECUTE FUNCTION full_disk()"
    with living_in(tmp_path / "home", TEACHER="", DATABASE=new_database(postgres)):
        with session() as db:
            db.connection().exec_driver_sql(full)
            db.connection().exec_driver_sql(f"CREATE TRIGGER fills {when}")
        with pytest.raises(SetupError, match=r"disk full: .*No space left on device") as said:
            ingest(source)
        assert "\n" not in str(said.value) and count(Interaction) == 1000
        with session() as db:
            db.connection().exec_driver_sql("DROP TRIGGER fills ON interaction")
        assert ingest(source)["interactions"] == 1000


APPENDER = (
    "import random, sys, time\n"
    "chance, content = random.Random(3), open(sys.argv[2], 'rb').read()\n"
    "with open(sys.argv[1], 'ab', buffering=0) as log:\n"
    "    while content:\n"
    "        size = chance.randrange(1, 3000)\n"
    "        log.write(content[:size])\n"
    "        content = content[size:]\n"
    "        time.sleep(0.004)\n"
)


def test_a_log_that_grows_is_read_line_by_line_and_no_half_of_one_stays_in_quarantine(
    database: str, tmp_path: Path
) -> None:
    (tmp_path / "whole").write_bytes(text(*range(1500)) + thumb(3))
    log = tmp_path / "a.jsonl"
    log.write_bytes(text(5000)[:10])  # the first line too may have no end yet
    source = JSONL((str(log),))
    with pytest.raises(SetupError, match="the file ends within"):
        ingest(source)
    log.write_bytes(text(5000))
    cut = 0
    with subprocess.Popen([sys.executable, "-c", APPENDER, str(log), str(tmp_path / "whole")]) as appender:
        while appender.poll() is None:
            cut += ingest(source)["quarantined"]
            assert count(Quarantine) <= 1
    told = ingest(source)
    assert (told["rows"], told["quarantined"], total(told)) == (1502, 0, 1502) and cut
    assert (count(Interaction), count(Feedback), count(Quarantine)) == (1501, 1, 0)


@pytest.mark.parametrize("keeps_name", [False, True], ids=["renamed", "copied and truncated"])
def test_a_rotated_log_is_read_to_its_end_under_its_new_name(database: str, tmp_path: Path, keeps_name: bool) -> None:
    log, older = tmp_path / "app.jsonl", tmp_path / "app.jsonl.1"
    whole = text(*range(20))
    log.write_bytes(whole[:-30])
    everything = JSONL((str(tmp_path),))
    assert ingest(everything)["quarantined"] == 1
    with log.open("ab") as file:
        file.write(whole[-30:])
    if keeps_name:
        older.write_bytes(log.read_bytes())
        os.truncate(log, 0)
    else:
        log.rename(older)
    with log.open("ab") as file:
        file.write(text(*range(20, 25)))
    told = ingest(everything)
    assert (told["rows"], told["interactions"], told["duplicates"], told["quarantined"]) == (25, 6, 19, 0)
    assert (count(Interaction), count(Quarantine)) == (25, 0)


def test_a_line_that_breaks_off_for_good_stays_in_quarantine(home: Path, tmp_path: Path) -> None:
    """The writer was killed and began anew on the next line, with the same first bytes."""
    log = tmp_path / "a.jsonl"
    log.write_bytes(text(1) + b'{"id":')
    assert ingest(JSONL((str(log),)))["quarantined"] == 1
    log.write_bytes(text(1) + b'{"id":\n' + text(2) + b'{"id": "3", "request"')
    for _ in range(2):
        told = ingest(JSONL((str(log),)))
        assert (told["rows"], told["quarantined"]) == (4, 2) and count(Quarantine) == 2


def test_what_a_reader_refused_leaves_quarantine_when_it_is_mended(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the log that is there still, and from the bytes in quarantine where it is gone."""
    for name, first in (("stays", 0), ("goes", 100)):
        rows = [record(first + n) for n in range(20)]
        for row in rows[:10]:
            row["request"]["messages"][0]["role"] = "human"
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JSONL((str(tmp_path),))
    with monkeypatch.context() as older:
        older.delitem(ROLES, "human")
        for _ in range(2):
            assert ingest(source)["quarantined"] == count(Quarantine) == 20
    (tmp_path / "goes.jsonl").unlink()
    told = ingest(source)
    assert (told["rows"], told["interactions"], told["duplicates"], told["quarantined"]) == (20, 10, 10, 0)
    assert count(Quarantine) == 10
    told = ingest(Quarantined())
    assert (told["rows"], told["interactions"], total(told)) == (10, 10, 10)
    assert (count(Interaction), count(Quarantine)) == (40, 0)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of a value and of everything in it."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from leaves(part, (*path, key))


CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"order": 48213}'}}
ASKED = {
    "model": "teacher",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "where is 48213?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "on its way"},
    ],
    "tools": [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}],
}  # fmt: skip
ANSWER = {
    "id": "chatcmpl-1", "created": 1756684873, "model": "teacher",
    "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "On its way.", "tool_calls": [CALL]}}],
}  # fmt: skip
PIECE = {"index": 0, "id": "c1", "function": {"name": "track", "arguments": "{}"}}
STREAM = [
    {"id": "s1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "On"}, "finish_reason": None}]},
    {"id": "s1", "choices": [{"index": 0, "delta": {"tool_calls": [PIECE]}, "finish_reason": "tool_calls"}]},
]
RECORD = {
    "id": "r", "timestamp": 1756684873, "workload_id": "w", "client_id": "web", "conversation_id": "c",
    "latency_ms": 2.5, "metadata": {"session_id": "s"},
}  # fmt: skip
OPINION = {"id": "f", "record_id": "r1", "timestamp": "2026-09-01T12:00:00Z"}
WHOLE: list[dict[str, Any]] = [
    {**RECORD, "request": ASKED, "response": ANSWER},
    {**RECORD, "request": ASKED, "response": STREAM},
    {**RECORD, "request": ASKED, "response": {"error": {"message": "overloaded"}}},
    {**OPINION, "kind": "thumb", "value": 1, "metric": "solved", "target": "episode"},
    {**OPINION, "kind": "rating", "value": 4, "scale": [1, 5]},
    {**OPINION, "kind": "label", "value": "refund"},
    {**OPINION, "kind": "correction", "value": {"role": "assistant", "content": None, "tool_calls": [CALL]}},
    {**OPINION, "kind": "preference", "value": {"chosen": "yes", "rejected": {"content": "no"}}},
]
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, -(10**12), 10**30, 1e308, "", " ", "x", "user", "1", "\ud800", "a\x00b",
    "é" * 600, "2026-01-01", "yesterday", "1e400", [], [None], [[]], [0], [{}], ["x", {"type": "text"}], [CALL, 5],
    [{"role": "x"}], [{"message": {}}], [{"function": {}}], {}, {"role": "user"}, {"content": 5}, {"error": 1},
    {"choices": []}, {"function": 1}, {"index": -1}, {"a\x00": "\udfff"}, {"content": None, "tool_calls": [{}]},
]  # fmt: skip
NESTED, NO_NUMBER = "@nested@", "@NaN@"
PLACES = [(number, path) for number, whole in enumerate(WHOLE) for path in leaves(whole)]
FUZZED = st.tuples(
    st.sampled_from(PLACES), st.sampled_from(["put", "put", "put", "drop", "wrap"]),
    st.sampled_from([*ODD, NESTED, NO_NUMBER]), st.integers(50, 3000),
)  # fmt: skip


def fuzzed(drawn: tuple[tuple[int, tuple[str | int, ...]], str, Any, int], unique: str) -> tuple[bytes, list[str]]:
    """A record with one fault as a line, and the names on the way to the fault."""
    (number, path), how, value, depth = drawn
    whole: Any = {**json.loads(json.dumps(WHOLE[number])), "n": unique}
    whole["id"] += unique
    if path:
        holder = whole
        for key in path[:-1]:
            holder = holder[key]
        if how == "drop":
            del holder[path[-1]]
        else:
            holder[path[-1]] = [holder[path[-1]]] if how == "wrap" else value
    else:
        whole = [whole] if how == "wrap" else value
    line = json.dumps(whole).replace(f'"{NESTED}"', "[" * depth + "]" * depth).replace(f'"{NO_NUMBER}"', "NaN")
    return line.encode(), [key for key in path if isinstance(key, str)]


@given(st.lists(FUZZED, min_size=100, max_size=100))
@hypothesis_settings(
    max_examples=100, deadline=None, database=None,
    phases=[Phase.generate],  # the message names the one record; to shrink a hundred takes minutes
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_ten_thousand_fuzzed_records_are_stored_or_refused_by_the_name_of_the_fault(
    database: str, tmp_path: Path, drawn: list[Any]
) -> None:
    unique = f"{next(NUMBERS)}-"
    lines = [fuzzed(one, f"{unique}{n}") for n, one in enumerate(drawn)]
    (tmp_path / "a.jsonl").write_bytes(text(1) + b"".join(line + b"\n" for line, _ in lines))
    before = count(Interaction), count(Feedback)
    told = ingest(JSONL((str(tmp_path / "a.jsonl"),)))
    assert told["rows"] == 101 == total(told)
    assert (told["interactions"], told["feedback"]) == (count(Interaction) - before[0], count(Feedback) - before[1])
    with session(write=False) as db:
        reasons = {digest: reason for digest, reason in db.execute(select(Quarantine.digest, Quarantine.reason))}
        assert all(row.request and row.response for row in db.scalars(select(Interaction)))
    refused = [(line, names, reasons.get(hashlib.sha256(line).hexdigest())) for line, names in lines]
    assert sum(1 for _, _, reason in refused if reason is not None) == told["quarantined"]
    for line, names, reason in refused:
        if reason is None or not names or reason.startswith("no JSON"):
            assert reason != ""
            continue
        assert any(name in reason for name in names), (reason, names, line[:2000])
