"""A home that is lost comes back elsewhere: the same champion serves there, and can be rolled back."""

import gzip
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from infra import promotions, registry
from infra.database import session as sessions
from infra.database.session import session
from infra.database.tables import Base, Dataset, Feedback, Interaction, now
from infra.engines import load
from infra.gateway.journal import Journal
from infra.settings import SetupError, settings
from tasks.backup import backup, restore
from tasks.doctor.examine import examine
from tests.conftest import living_in, new_database

ROOT = Path(__file__).parent.parent.parent


def interaction(n: int) -> dict[str, object]:
    return {
        "source": "test", "external_id": f"r{n}", "workload": "shop", "conversation": f"c{n}", "at": now(),
        "request": {"messages": [{"role": "user", "content": f"où est {n} ‖ \ud83d\ude9a"}]},
        "response": {"choices": []}, "latency_ms": 1.5, "digest": "", "created": now(),
    }  # fmt: skip


def fill(home: Path, rows: int = 5) -> None:
    """Traffic, feedback, a dataset, and a line that waits in the spool."""
    with session() as db:
        db.execute(insert(Interaction), [interaction(n) for n in range(rows)])
        db.add(Feedback(source="test", external_id="f", record_id="r1", at=now(), kind="label", value=None))
        folder = home / "datasets" / "d1"
        folder.mkdir(parents=True)
        (folder / "train.parquet").write_bytes(b"rows")
        (home / "datasets" / "d2.partial").mkdir()
        (home / "datasets" / "d2.partial" / "half").write_text("half")
        db.add(Dataset(id="d1", workload="shop", path=str(folder), report={}, spec={"a": None}))
    Journal().append(b'{"id": "waits"}')


def everything() -> dict[str, list[object]]:
    """All rows of all tables, paths relative to the home."""
    with session(write=False) as db:
        found = {}
        for table in Base.metadata.sorted_tables:
            rows = [list(row) for row in db.execute(select(table).order_by(*table.primary_key))]
            home = str(settings().home)
            found[table.name] = [[v.replace(home, "HOME") if isinstance(v, str) else v for v in row] for row in rows]
        return found


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, artifact: Callable[..., Path]) -> Iterator[tuple[Path, str, str]]:
    """A backup of a home in which a second version serves; the home is gone. With both versions' numbers."""
    folder = tmp_path_factory.mktemp("lost")
    with living_in(folder / "old home", TEACHER="") as home:
        fill(home)
        versions = []
        for n in (1, 2):
            made, _ = registry.register(
                "shop/für", artifact(n=n), metrics={"quality": 0.5}, tags={}, parameters={}, run_name="x",
                data=registry.Data("d1", home / "datasets" / "d1"),
            )  # fmt: skip
            promotions.promote("shop/für", made, "release", "passed")
            versions.append(made)
        backup(folder / "b.tar.gz")
        home.rename(folder / "gone")
    yield folder / "b.tar.gz", versions[0], versions[1]


def test_a_restored_home_serves_the_same_champion_and_rolls_back(lost: tuple[Path, str, str], tmp_path: Path) -> None:
    path, first, second = lost
    with living_in(tmp_path / "new", TEACHER="") as home:
        restore(path)
        assert (home / "datasets" / "d1" / "train.parquet").read_bytes() == b"rows"
        assert not (home / "datasets" / "d2.partial").exists() and [p.name for p in tmp_path.iterdir()] == ["new"]
        assert b"waits" in next((home / "spool").glob("*.jsonl")).read_bytes()
        with session(write=False) as db:
            assert db.scalar(select(Dataset.path)) == str(home / "datasets" / "d1")
        champion = registry.champion("shop/für")
        assert champion is not None and champion.version == second and champion.folder.is_relative_to(home)
        engine = load(champion.folder)
        try:
            (reply,) = engine.chat([{"messages": [{"role": "user", "content": "where is order"}]}])
            assert reply.completion_tokens
        finally:
            engine.close()
        found = {f["check"]: f for f in examine("mlflow")["findings"]}
        assert found["mlflow"]["level"] == "ok"
        assert promotions.rollback("shop/für", "asked for") == (first, second)
        assert registry.champion("shop/für").folder.is_relative_to(home)  # type: ignore[union-attr]


def test_a_home_with_anything_in_it_is_left_alone(lost: tuple[Path, str, str], tmp_path: Path) -> None:
    with living_in(tmp_path / "new", TEACHER="") as home:
        home.mkdir()
        (home / "mine.txt").write_text("mine")
        with pytest.raises(SetupError, match=r"mine\.txt"):
            restore(lost[0])
        assert [p.name for p in home.iterdir()] == ["mine.txt"] and [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_flipped_byte_is_found_and_nothing_is_touched(lost: tuple[Path, str, str], tmp_path: Path) -> None:
    plain = bytearray(gzip.decompress(lost[0].read_bytes()))
    plain[plain.index(b"GGUF") + 5000] ^= 1
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(plain), 1))
    with living_in(tmp_path / "new", TEACHER="") as home:
        with pytest.raises(SetupError, match=r"model\.gguf.*is not what was kept"):
            restore(tmp_path / "b.tar.gz")
        assert not home.exists() and [p.name for p in tmp_path.iterdir()] == ["b.tar.gz"]


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_killed_on_the_way_it_leaves_nothing_half(command: str, lost: tuple[Path, str, str], tmp_path: Path) -> None:
    """The process dies (SIGKILL) as soon as anything of it is on the disk."""
    if command == "restore":
        home, path = tmp_path / "new", lost[0]
    else:
        home, path = lost[0].parent / "gone", tmp_path / "b.tar.gz"
    code = (
        "import os, signal, tasks.backup as b\n"
        f"b.{'place' if command == 'restore' else 'kept'} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"b.{command}(__import__('pathlib').Path({str(path)!r}))"
    )
    environment = {**os.environ, "FLYWHEEL_HOME": str(home), "FLYWHEEL_TEACHER": ""}
    died = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = [p.name for p in tmp_path.iterdir()]
    assert left and all(name.startswith(".") for name in left), "only what is marked as unfinished"
    with living_in(home, TEACHER=""):
        if command == "restore":
            restore(path)
            assert [p.name for p in tmp_path.iterdir()] == ["new"], "what the dead one left is gone, too"
        else:
            assert backup(path)["files"]


def test_a_copy_made_while_others_write_is_of_one_moment(home: Path, tmp_path: Path) -> None:
    """Each write is two rows or none; every copy has whole pairs, and the writer is not kept waiting for good."""
    with session() as db:
        db.execute(insert(Interaction), [interaction(n) for n in range(2)])
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            with session() as db:
                db.execute(insert(Interaction), [interaction(10 + written)])
                db.execute(insert(Interaction), [interaction(11 + written)])
            written += 2

    thread = threading.Thread(target=write)
    thread.start()
    try:
        counts = []
        for n in range(4):
            before = written
            while written < before + 20:
                time.sleep(0.005)
            backup(tmp_path / f"{n}.tar.gz")
            counts.append(n)
    finally:
        stop.set()
        thread.join()
    for n in counts:
        with living_in(tmp_path / f"home{n}", TEACHER=""):
            restore(tmp_path / f"{n}.tar.gz")
            with closing(sqlite3.connect(settings().home / "flywheel.db")) as connection:
                (rows,) = connection.execute("SELECT count(*) FROM interaction").fetchone()
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert rows % 2 == 0 and rows >= 20 * (n + 1)


@pytest.mark.parametrize("way", ["postgresql to postgresql", "sqlite to postgresql", "postgresql to sqlite"])
def test_every_row_comes_back_whatever_the_database(way: str, postgres: str, tmp_path: Path) -> None:
    source, target = (name == "postgresql" for name in way.split(" to "))
    with living_in(tmp_path / "old", TEACHER="", **({"DATABASE": new_database(postgres)} if source else {})) as home:
        fill(home, rows=1203)
        backup(tmp_path / "b.tar.gz")
        before = everything()
    with living_in(tmp_path / "new", TEACHER="", **({"DATABASE": new_database(postgres)} if target else {})) as home:
        restore(tmp_path / "b.tar.gz")
        assert everything() == before
        assert (home / "flywheel.db").exists() is not target
        with session() as db:  # ids go on behind those that are there
            db.execute(insert(Interaction), [interaction(9999)])
            assert db.scalar(select(func.count()).select_from(Interaction)) == 1204
        sessions.close()
    with living_in(tmp_path / "third", TEACHER="", DATABASE=settings_url(target, postgres, tmp_path)) as home:
        with pytest.raises(SetupError, match=r"exists|has rows"):
            restore(tmp_path / "b.tar.gz")
        assert not home.exists()


def settings_url(target: bool, postgres: str, tmp_path: Path) -> str:
    """A database that is not empty: the one that was restored into."""
    if not target:
        return f"sqlite:///{tmp_path / 'new' / 'flywheel.db'}"
    import psycopg

    with psycopg.connect(postgres.format("postgres")) as connection:
        names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'flywheel%' ORDER BY oid")
        return postgres.format(names.fetchall()[-1][0])


@pytest.mark.parametrize("place", ["home/b.tar.gz", "there.tar.gz", "nowhere/b.tar.gz"])
def test_a_path_that_will_not_do_is_told(place: str, home: Path, tmp_path: Path) -> None:
    fill(home)
    (tmp_path / "there.tar.gz").write_text("mine")
    with pytest.raises(SetupError, match=r"outside of|exists|does not exist"):
        backup(tmp_path / place)
    assert (tmp_path / "there.tar.gz").read_text() == "mine"
