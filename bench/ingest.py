"""Ingest at volume, beside its floor (the same rows written by the driver alone), and curation of what it stored.

    python bench/ingest.py [out] [--rows 100000 300000 1000000] [--databases sqlite] [--redact none] [--no-curate]

`out` (bench/out/ingest) holds the logs it writes: one line an interaction, about 2 kB each, of a made-up support desk:
a system prompt that all share, one to three turns, order numbers, and in one of thirty an e-mail address or a phone
number; every twentieth is followed by feedback. PostgreSQL is a private cluster, if the server's programs are
installed, or what URL names (a server where databases may be created).

Every figure is of a process of its own, and is printed when there is one. Floor and ingest of one database run one
after the other, so the ratios hold on a busy machine (its load is printed), the rates do not. Memory is the peak of the
resident sets of all its processes, imports and all.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 1000
SYSTEM = (
    "You are the assistant of a shop for outdoor gear. "
    + (
        "Answer in at most three sentences and name the order when there is one. Never promise a refund before the "
        "parcel is scanned, and never ask for a card number. Where a customer is angry, say first what you will do. "
    )
    * 3
)
WORDS = (
    "where is my parcel order the a tent sleeping bag boots size refund late broken zip colour return label courier "
    "address invoice discount code works not yet since monday please help thanks stove gas rain jacket waterproof seam "
    "warranty shop store open hours pick up"
).split()


def lines(rows: int, seed: int = 1) -> Iterator[bytes]:
    """Lines of a log: `rows` interactions and, for one of twenty, what somebody said of it."""
    chance = random.Random(seed)

    def words(n: int) -> str:
        return " ".join(chance.choices(WORDS, k=n))

    for n in range(rows):
        said: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
        for _ in range(chance.randint(0, 2)):
            said += [{"role": "user", "content": words(20)}, {"role": "assistant", "content": words(30)}]
        reach = ["", f" write to {chance.choice(WORDS)}{n}@example.com", f" call +1 415 555 {n % 9000 + 1000}"]
        said.append(
            {
                "role": "user",
                "content": f"{words(25)} order {chance.randint(10000, 99999)}{reach[n % 3 if n % 20 == 0 else 0]}",
            }
        )
        name = f"chatcmpl-{chance.getrandbits(128):032x}"
        yield orjson.dumps(
            {
                "id": name, "timestamp": 1_756_684_800 + n, "workload_id": "shop.support",
                "client_id": f"c{chance.randint(1, 50_000)}", "conversation_id": f"s{n // 2}",
                "latency_ms": chance.uniform(200, 2000),
                "request": {"model": "gpt-4o", "messages": said, "temperature": 0.2, "max_tokens": 512},
                "response": {
                    "id": name, "object": "chat.completion", "created": 1_756_684_800 + n, "model": "gpt-4o-2024-08-06",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": words(40)}, "finish_reason": "stop"}
                    ],
                    "usage": {"prompt_tokens": 400, "completion_tokens": 60, "total_tokens": 460},
                },
            }
        )  # fmt: skip
        if n % 20 == 0:
            yield orjson.dumps(
                {"record_id": name, "timestamp": 1_756_684_900 + n, "kind": "thumb", "value": 1 - n % 40 // 10}
            )


def write(file: Path, rows: int) -> None:
    if not file.exists():
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            stream.writelines(line + b"\n" for line in lines(rows))
        partial.rename(file)


# -- what runs in a process of its own; each prints one JSON object ---------------------------------------------------


def parsing(file: Path) -> dict[str, float]:
    """The lines parsed by `orjson`, and no more."""
    started = time.perf_counter()
    with file.open("rb") as stream:
        n = sum(1 for line in stream if orjson.loads(line))
    return {"rows": n, "seconds": time.perf_counter() - started}


def floor(file: Path) -> dict[str, float]:
    """The same rows written by the driver alone, to the same tables, in transactions of the same size."""
    from infra.database.records import InteractionRow, parse
    from infra.database.session import database, session
    from infra.database.store import _table, _tuples
    from infra.database.tables import Feedback, Interaction, now
    from infra.settings import settings

    with session():
        pass
    connection = database(settings().database_url).raw_connection()
    driver, dialect = connection.driver_connection, database(settings().database_url).dialect
    spent, n = 0.0, 0
    with file.open("rb") as stream:
        while batch := [
            parse(orjson.loads(line), source="jsonl", at=now())
            for line in (stream.readline() for _ in range(BATCH))
            if line
        ]:
            for mapped in (Interaction, Feedback):
                mine = [row for row in batch if isinstance(row, InteractionRow) == (mapped is Interaction)]
                if not mine:
                    continue
                names, values = _tuples(_table(mapped), mine, dialect)
                columns = ", ".join(names)
                started = time.perf_counter()
                cursor = driver.cursor()
                if dialect.name == "sqlite":
                    cursor.execute("BEGIN IMMEDIATE")
                    marks = ", ".join("?" * len(names))
                    cursor.executemany(f"INSERT INTO {mapped.__tablename__} ({columns}) VALUES ({marks})", values)
                    cursor.execute("COMMIT")
                else:
                    with cursor.copy(f"COPY {mapped.__tablename__} ({columns}) FROM STDIN") as copy:
                        for row in values:
                            copy.write_row(row)
                    driver.commit()
                spent += time.perf_counter() - started
            n += len(batch)
    return {"rows": n, "seconds": spent}


def ours(file: Path) -> dict[str, float]:
    """`flywheel ingest jsonl`, first and again."""
    from infra.database.session import session
    from tasks.ingest import ingest
    from tasks.sources.jsonl import JSONL

    with session():
        pass
    started = time.perf_counter()
    counts = ingest(JSONL((str(file),)))
    return {
        "rows": counts["rows"],
        "stored": counts["interactions"] + counts["feedback"],
        "seconds": time.perf_counter() - started,
    }


def curated(file: Path) -> dict[str, float]:
    """`flywheel curate` of all that the database holds."""
    from tasks.curate import CurateSpec, curate

    started = time.perf_counter()
    report = curate("shop.support", CurateSpec(max_rows=1 << 30))
    return {"rows": report["interactions"], "frozen": report["train"], "seconds": time.perf_counter() - started}


CASES = {"parse": parsing, "floor": floor, "ingest": ours, "curate": curated}


def measured(case: str, file: Path, home: Path, **environment: str) -> dict[str, Any]:
    """A case in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLYWHEEL_")}
    settings = {f"FLYWHEEL_{name}": value for name, value in environment.items()}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, str(file)],
        env={**kept, "FLYWHEEL_HOME": str(home), **settings}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


# -- databases -------------------------------------------------------------------------------------------------------


@contextmanager
def cluster() -> Iterator[str]:
    """URL of a private PostgreSQL cluster with its usual settings (it does sync), `{}` for the database's name."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        yield ""
        return
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="fw-bench-pg-"))
    if as_postgres:
        shutil.chown(folder, "postgres")

    def run(program: str, *options: str) -> None:
        command = [*as_postgres, str(programs[-1] / program), "-D", str(folder / "data"), *options]
        subprocess.run(command, cwd="/", stdout=subprocess.DEVNULL, check=True)

    run("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder}", "start")
    try:
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new(kind: str, server: str, folder: Path) -> Iterator[dict[str, str]]:
    """Settings that name an empty database."""
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "sqlite":
        yield {}
    else:
        import psycopg

        with psycopg.connect(server.format("postgres"), autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS flywheel_bench")
            admin.execute("CREATE DATABASE flywheel_bench")
        yield {"DATABASE": server.format("flywheel_bench")}
    shutil.rmtree(folder, ignore_errors=True)


def size(kind: str, server: str, folder: Path) -> int:
    if kind == "sqlite":
        return sum(file.stat().st_size for file in folder.glob("flywheel.db*"))
    import psycopg

    with psycopg.connect(server.format("flywheel_bench")) as connection:
        row = connection.execute("SELECT pg_database_size('flywheel_bench')").fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("out", nargs="?", type=Path, default=ROOT / "bench/out/ingest")
    words.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    words.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    words.add_argument("--redact", nargs="+", default=["none", "all"])
    words.add_argument("--postgresql", default="")
    words.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    words.add_argument("--no-curate", action="store_true")
    given = words.parse_args()
    if given.case:
        figures = CASES[given.case](given.out)
        peaks = [resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(json.dumps({**figures, "memory": sum(peaks) << 10}))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    with cluster() as own:
        server = given.postgresql or own
        for rows in given.rows:
            file = given.out / f"{rows}.jsonl"
            write(file, rows)
            parse = measured("parse", file, given.out)
            tell("orjson", "parse", parse)
            for kind in given.databases if server else ["sqlite"]:
                compare(kind, server, file, given.out / "home", parse, given.redact, not given.no_curate)


def compare(
    kind: str, server: str, file: Path, folder: Path, parse: dict[str, Any], ways: list[str], curate: bool
) -> None:
    """The floor; for each way to redact, ingest and ingest again; and curation of what the first stored."""
    with new(kind, server, folder) as settings:
        least = measured("floor", file, folder, **settings)
    tell(kind, "floor", least)
    for redact in ways:
        with new(kind, server, folder) as settings:
            first = measured("ingest", file, folder, REDACT=redact, **settings)
            beside = f"{rate(first) / rate(least):.2f} of the floor, {rate(first) / rate(parse):.2f} of parsing"
            held = size(kind, server, folder) / first["rows"]
            tell(kind, f"ingest, redact {redact}", first, f"{beside}, {held:.0f} bytes a row")
            again = measured("ingest", file, folder, REDACT=redact, **settings)
            tell(kind, "the same again", again, f"{first['seconds'] / again['seconds']:.1f} times as fast")
            assert first["stored"] == first["rows"] == again["rows"] and not again["stored"]
            if curate and redact == ways[0]:
                frozen = measured("curate", file, folder, TEACHER="", **settings)
                tell(kind, "curate", frozen, f"{frozen['frozen']} rows to train on")


def rate(figures: dict[str, Any]) -> float:
    return float(figures["rows"] / figures["seconds"])


def tell(kind: str, case: str, figures: dict[str, Any], beside: str = "") -> None:
    """A line of a measurement."""
    print(
        f"{figures['rows']:>9} rows  {kind:<11}{case:<20}{rate(figures):>8.0f} rows/s"
        f"{figures['memory'] / 1e6:>6.0f} MB  load {os.getloadavg()[0]:.1f}  {beside}".rstrip(), flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
