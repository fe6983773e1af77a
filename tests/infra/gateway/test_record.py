"""Databases that go away under a running gateway and come back: nothing is lost, nothing is there twice."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infra.database import session as sessions
from infra.database.tables import Feedback, Interaction, Quarantine
from infra.gateway import record, spool
from infra.gateway.journal import Journal
from infra.settings import SetupError, settings
from tasks.ingest import ingest
from tasks.sources.gateway import Gateway
from tests.conftest import new_database
from tests.infra.gateway.conftest import Teacher, eventually
from tests.infra.gateway.test_app import counted, rows

MESSAGES = [{"role": "user", "content": "where is order 48213"}]


def ask(url: str) -> str:
    """A call that must be answered; the id of the answer."""
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "shop", "messages": MESSAGES}, timeout=30)
    assert answer.status_code == 200
    return str(answer.json()["id"])


def praise(url: str, about: str) -> tuple[str, int]:
    given = {"record_id": about, "kind": "thumb", "value": 1}
    answer = httpx.post(f"{url}/v1/feedback", json=given, timeout=30)
    return str(answer.json()["id"]), answer.status_code


def spooled() -> list[dict[str, Any]]:
    return [json.loads(line) for file in kept() for line in file.read_text().splitlines()]


def kept() -> list[Path]:
    """The files of the spool, those of gateways that live included."""
    return [file for file in sorted(spool.folder().glob("*.jsonl")) if spool.size_of(file)]


def ids(table: Any) -> list[str]:
    """By the time of the call: what is stored together is not stored in order."""
    return [row.external_id for row in sorted(rows(table), key=lambda row: row.at)]


def drained() -> bool:
    return not kept()


@pytest.fixture(autouse=True)
def plain(teacher: type[Teacher]) -> None:
    teacher.scripts.pop("shop", None)


class Cluster:
    """A PostgreSQL of one's own, to be stopped and started."""

    def __init__(self, url: str, stop: Callable[[], None], start: Callable[[], None]) -> None:
        self.url, self.stop, self.start = url, stop, start


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL: `apt-get install postgresql` (in /usr/lib/postgresql)")
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="fw-pg-", dir="/tmp"))
    if as_postgres:
        shutil.chown(folder, "postgres")

    def run(*command: str) -> None:
        done = subprocess.run([*as_postgres, *command], cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    run(str(found[-1]), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
    control = [str(found[-1].with_name("pg_ctl")), "-D", data]
    start = [*control, "-w", "-l", str(folder / "log"), "-o", options, "start"]
    run(*start)
    try:
        url = new_database(f"postgresql://postgres@/{{}}?host={folder}")
        yield Cluster(url, lambda: run(*control, "-m", "immediate", "stop"), lambda: run(*start))
    finally:
        subprocess.run([*as_postgres, *control, "-m", "immediate", "stop"], cwd="/", capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_postgresql_that_is_stopped_and_started_misses_nothing(open_house: Any, cluster: Cluster) -> None:
    with open_house(DATABASE=cluster.url) as url:
        asked = [ask(url)]
        eventually(drained)
        cluster.stop()
        asked += [ask(url) for _ in range(5)]
        said, status = praise(url, asked[3])
        assert status == 202
        assert [line["id"] for line in spooled()] == [*asked[1:], said]
        file = kept()[0]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        cluster.start()
        eventually(drained)
        assert ids(Interaction) == asked and ids(Feedback) == [said]
        assert eventually(lambda: praise(url, asked[0])[1]) == 200, "the database is asked first again"


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Another process that keeps SQLite's write lock."""
    with contextlib.closing(sqlite3.connect(settings().home / "flywheel.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_locked_sqlite_costs_a_customer_nothing_and_the_record_nothing(open_house: Any) -> None:
    with open_house() as url:
        first = ask(url)
        with writing():
            locked_out = [ask(url) for _ in range(12)]
            assert praise(url, first)[1] == 202
            assert counted(url)["flywheel_database_up"] == 0
            said, status = praise(url, first)
            assert status == 202 and {*locked_out, said} <= {line["id"] for line in spooled()}
        eventually(drained)
        assert ids(Interaction) == [first, *locked_out] and ids(Feedback) == [said]


def test_many_customers_at_once_do_not_wait_for_each_others_lock(open_house: Any) -> None:
    async def crowd(url: str) -> list[str]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=60)) as client:
            body = {"model": "shop", "messages": MESSAGES}
            answers = [client.post(f"{url}/v1/chat/completions", json=body) for _ in range(60)]
            return [answer.json()["id"] for answer in await asyncio.gather(*answers)]

    with open_house() as url:
        ask(url)
        with writing():
            asked = asyncio.run(crowd(url))
        eventually(drained)
        eventually(lambda: len(rows(Interaction)) == 61)
        assert set(asked) < set(ids(Interaction)) and rows(Quarantine) == []


def test_a_postgresql_that_becomes_read_only_is_away_until_it_is_not(
    open_house: Any, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(state: str) -> None:
        name = cluster.url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(
            cluster.url, autocommit=True, options="-c default_transaction_read_only=off"
        ) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {state}")
        sessions.close()

    with open_house(DATABASE=cluster.url) as url:
        asked = [ask(url)]
        eventually(drained)
        read_only("on")
        asked += [ask(url) for _ in range(2)]
        time.sleep(2 * record.POLL_SECONDS)
        assert [line["id"] for line in spooled()] == asked[1:]
        read_only("off")
        eventually(drained)
        assert ids(Interaction) == asked
    assert "the database is away" in caplog.text
    assert "[parameters: " not in caplog.text and "INSERT INTO" not in caplog.text, "the driver's message holds the row"


def test_a_record_that_the_database_refuses_by_itself_goes_to_quarantine(open_house: Any) -> None:
    with open_house() as url:
        first = ask(url)
        eventually(drained)
        with contextlib.closing(sqlite3.connect(settings().home / "flywheel.db")) as other:
            other.execute("CREATE TRIGGER shut BEFORE INSERT ON interaction BEGIN SELECT RAISE(ABORT, 'shut'); END")
        second = ask(url)
        eventually(drained)
        with contextlib.closing(sqlite3.connect(settings().home / "flywheel.db")) as other:
            other.execute("DROP TRIGGER shut")
        assert ids(Interaction) == [first]
        assert [json.loads(entry.raw)["id"] for entry in rows(Quarantine)] == [second]


def test_the_drain_and_two_ingests_at_once_store_each_record_once(open_house: Any) -> None:
    with open_house() as url:
        first = ask(url)
        eventually(drained)
        with writing():
            asked = [ask(url) for _ in range(40)]
            said, _ = praise(url, asked[0])
            files = tuple(map(str, kept()))
            copy = settings().home / "carried.jsonl"
            copy.write_bytes(b"".join(file.read_bytes() for file in kept()))
        counts: list[dict[str, Any]] = []

        def read(*paths: str) -> None:
            with contextlib.suppress(SetupError):  # drained before it was opened
                counts.append(ingest(Gateway(paths)))

        readers = [threading.Thread(target=read, args=paths) for paths in (files, (str(copy),))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        eventually(drained)
        assert sorted(ids(Interaction)) == sorted([first, *asked]) and ids(Feedback) == [said]
        assert rows(Quarantine) == []
        assert all(c["rows"] == c["interactions"] + c["feedback"] + c["duplicates"] for c in counts)
        assert ingest(Gateway((str(copy),)))["duplicates"] == 41


def test_where_the_spool_cannot_be_written_either_records_wait_in_memory(
    open_house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with open_house() as url:
        first = ask(url)
        eventually(drained)
        shutil.rmtree(spool.folder())
        spool.folder().write_text("in the way")
        with writing():
            asked = [ask(url) for _ in range(3)]
            assert "wait in memory" in caplog.text
        eventually(lambda: len(rows(Interaction)) == 4)
        assert ids(Interaction) == [first, *asked]


def test_a_gateway_that_ends_while_the_database_is_away_leaves_the_spool_to_the_next(open_house: Any) -> None:
    with contextlib.ExitStack() as lock, open_house() as url:
        first = ask(url)
        lock.enter_context(writing())
        second = ask(url)
    with open_house():
        eventually(drained)
        assert ids(Interaction) == [first, second]


KILLED = """
import sys
from infra.gateway.journal import Journal
journal = Journal()
for n in range(10**6):
    if n % 7 == 6:
        journal.turn()
    journal.append(b'{"record_id": "a", "kind": "thumb", "value": 1, "id": "%s-%d"}' % (sys.argv[1].encode(), n))
    print(n, flush=True)
"""


def test_writers_that_are_killed_and_a_drain_beside_them_lose_no_line_that_was_acknowledged(
    home: Path, tmp_path: Path
) -> None:
    def heard(name: str) -> int:
        """Lines of a writer that were acknowledged."""
        return len((tmp_path / name).read_text().splitlines())

    def drain() -> None:
        for file in spool.files(spool.folder()):
            spool.drain(file)

    writers = []
    for name in "abc":
        with (tmp_path / name).open("w") as said:
            writers.append(subprocess.Popen([sys.executable, "-c", KILLED, name], stdout=said))
    try:
        deadline = time.monotonic() + 240  # where all is busy, the last may start long after the first
        while min(map(heard, "abc")) < 40:
            assert time.monotonic() < deadline and all(writer.poll() is None for writer in writers)
            drain()
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    drain()
    assert drained()
    assert {f"{name}-{n}" for name in "abc" for n in range(heard(name))} <= set(ids(Feedback))


def test_a_line_for_a_file_that_is_deleted_meanwhile_goes_into_a_new_one(home: Path) -> None:
    journal = Journal()
    journal.append(b'{"n": 1}')
    (path,) = kept()
    with path.open("rb") as file, spool.locked(file):
        writer = threading.Thread(target=journal.append, args=(b'{"n": 2}',))
        writer.start()
        time.sleep(0.3)
        path.unlink()
    writer.join()
    assert path.read_bytes() == b'{"n": 2}\n'


def test_a_torn_line_is_quarantined_and_harms_none_before_it(home: Path) -> None:
    good = [json.dumps({"record_id": "a", "kind": "thumb", "value": 1, "id": str(n)}).encode() for n in range(2)]
    journal = Journal()
    journal.append(good[0])
    journal.close()
    (file,) = spool.files(spool.folder())
    with file.open("ab") as torn:
        torn.write(good[1][:20])
    assert spool.drain(file) == ["stored", "quarantined"] and drained()
    assert [entry.raw for entry in rows(Quarantine)] == [good[1][:20]]


def test_a_full_disk_leaves_no_half_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    journal = Journal()
    journal.append(b'{"a": 1}')
    (file,) = kept()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError):
            journal.append(b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == b'{"a": 1}\n'
