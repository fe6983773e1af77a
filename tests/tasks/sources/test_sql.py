"""Traffic that lies in a database, SQLite and PostgreSQL: read, read on, and never changed."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, create_engine, func, select, text

from infra.database.records import InteractionRow
from infra.database.session import session
from infra.database.tables import Base, Cursor, Feedback, Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources.part import Entry
from tasks.sources.sql import SQL
from tests.conftest import living_in, new_database

LOG = "SELECT * FROM chat_log"
COLUMNS: Any = {"prompt": "question", "answer": "reply", "rating": "stars", "timestamp": "at"}


@pytest.fixture(params=["sqlite", "postgresql"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Iterator[Engine]:
    """Someone's database with an empty table chat_log."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'theirs.db'}"
    else:
        url = new_database(request.getfixturevalue("postgres")).replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url)
    run(engine, "CREATE TABLE chat_log (id INTEGER, question TEXT, reply TEXT, stars INTEGER, at TIMESTAMP)")
    yield engine
    engine.dispose()


def run(engine: Engine, statement: str, *rows: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), rows or None)


def add(engine: Engine, *numbers: int, at: str = "2026-01-01 10:00:00", stars: int | None = None) -> None:
    rows = [{"id": n, "q": f"question {n}", "r": f"reply {n}", "s": stars} for n in numbers]
    run(engine, f"INSERT INTO chat_log VALUES (:id, :q, :r, :s, '{at.replace(':', chr(92) + ':')}')", *rows)


def url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def source(engine: Engine, query: str = LOG, **options: Any) -> SQL:
    return SQL(query, **{"url": url(engine), "columns": COLUMNS, "workload": "w", **options})


def entries(spec: SQL, position: dict[str, Any] | None = None) -> list[Entry]:
    (part,) = spec.parts()
    return list(part.read(position))


def count(table: type[Base]) -> int:
    with session(write=False) as db:
        return db.scalar(select(func.count()).select_from(table)) or 0


def ids() -> list[int]:
    with session(write=False) as db:
        return sorted(int(found) for found in db.scalars(select(Interaction.external_id)))


def told(counts: dict[str, Any]) -> tuple[int, ...]:
    kinds = ("interactions", "feedback", "duplicates", "quarantined")
    assert counts["rows"] == sum(counts[kind] for kind in kinds)
    return tuple(counts[kind] for kind in kinds)


def test_calls_and_ratings_of_one_table_are_stored_once(theirs: Engine) -> None:
    add(theirs, 1, 2)
    add(theirs, 3, 4, stars=5)
    run(theirs, "INSERT INTO chat_log (id, reply) VALUES (5, 'nobody asked')")
    assert told(ingest(source(theirs))) == (4, 2, 0, 1)
    assert told(ingest(source(theirs, LOG + "; -- all of it"))) == (0, 0, 6, 1)
    with session(write=False) as db:
        joined = select(Interaction.external_id, Feedback.value).join(
            Feedback, Feedback.record_id == Interaction.external_id
        )
        assert sorted(db.execute(joined)) == [("3", 5.0), ("4", 5.0)]
        assert db.scalar(select(Interaction.at).limit(1)).isoformat() == "2026-01-01T10:00:00+00:00"
        kept = db.scalars(select(Quarantine)).one()
        assert json.loads(kept.raw) == {"id": 5, "request": None, "response": json.loads(kept.raw)["response"]}
        assert "request is null" in kept.reason and kept.position.endswith("row 5")


def test_what_lies_in_quarantine_can_be_parsed_again_and_leaves_it_when_it_is_mended(theirs: Engine) -> None:
    add(theirs, 1, stars=3)
    nameless = source(theirs, workload="", increasing="id")
    assert told(ingest(nameless)) == (0, 1, 0, 1)
    with session(write=False) as db:
        kept = db.scalars(select(Quarantine)).one()
    (again,) = nameless.parse(kept.raw, kept.created)
    assert again.raw == kept.raw and hashlib.sha256(again.raw).hexdigest() == kept.digest
    (mended,) = source(theirs).parse(kept.raw, kept.created)
    assert mended.row is not None and mended.row.external_id == "1"
    assert told(ingest(source(theirs, increasing="id"))) == (1, 0, 1, 0)
    assert count(Quarantine) == 0


def test_a_table_of_feedback_joins_by_the_id_of_the_call(theirs: Engine) -> None:
    add(theirs, 1, 2)
    run(theirs, "CREATE TABLE votes (call INTEGER, kind TEXT, value TEXT)")
    run(theirs, "INSERT INTO votes VALUES (1, 'thumb', '-1'), (1, 'rating', '2'), (2, 'correction', 'better')")
    assert told(ingest(source(theirs, "SELECT * FROM votes", columns={"record_id": "call"}))) == (0, 3, 0, 0)
    joined = f"SELECT l.*, v.kind, v.value FROM ({LOG}) l JOIN votes v ON v.call = l.id"
    assert told(ingest(source(theirs, joined, columns={**COLUMNS, "rating": ""}))) == (2, 3, 1, 0)


def test_a_column_that_grows_is_read_on_from_its_last_value(theirs: Engine) -> None:
    add(theirs, *range(1, 6), stars=4)
    spec = source(theirs, increasing="id")
    assert told(ingest(spec)) == (5, 5, 0, 0)
    add(theirs, 6, 7)
    found = entries(spec, position())
    assert [entry.row.external_id for entry in found if isinstance(entry.row, InteractionRow)] == ["5", "6", "7"]
    assert told(ingest(spec)) == (2, 0, 10, 0) and ids() == list(range(1, 8))
    assert told(ingest(spec)) == (0, 0, 12, 0)


def position() -> dict[str, Any]:
    with session(write=False) as db:
        return db.scalars(select(Cursor.position)).one()


def test_rows_that_share_the_last_value_are_not_lost(theirs: Engine) -> None:
    spec = source(theirs, increasing="at")
    for first in (0, 3, 6):
        add(theirs, *range(first, first + 3), at="2026-01-01 10:00:00.123456")
        assert told(ingest(spec)) == (3, 0, first, 0)
    add(theirs, 9, at="2026-01-01 10:00:01")
    assert told(ingest(spec)) == (1, 0, 9, 0)
    assert [entry.row.external_id for entry in entries(spec, position()) if entry.row] == ["9"]


def test_rows_without_a_value_are_read_each_time(theirs: Engine) -> None:
    add(theirs, 1, 2)
    run(theirs, "UPDATE chat_log SET at = NULL WHERE id = 1")
    spec = source(theirs, increasing="at")
    assert told(ingest(spec)) == (2, 0, 0, 0)
    add(theirs, 3)
    run(theirs, "INSERT INTO chat_log VALUES (4, 'q', 'r', NULL, NULL)")
    assert told(ingest(spec)) == (2, 0, 2, 0) and ids() == [1, 2, 3, 4]


def test_a_broken_run_goes_on_behind_what_it_stored(theirs: Engine) -> None:
    run(theirs, *_many(theirs, 2500))
    spec = source(theirs, increasing="id")

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(spec, progress=broken)
    assert count(Interaction) == 1000 and position()["last"] == {"int": 1000}
    assert told(ingest(spec)) == (1500, 0, 1000, 0)
    assert ids() == list(range(1, 2501))


def test_progress_counts_rows_where_nobody_knows_how_many_there_are(theirs: Engine) -> None:
    run(theirs, *_many(theirs, 2500))
    steps: list[tuple[int, int, str]] = []
    ingest(source(theirs, increasing="id"), progress=lambda *step: steps.append(step))
    assert steps == [(rows, 0, "ingest, rows") for rows in (1000, 2000, 2500)]


def _many(engine: Engine, rows: int) -> tuple[str]:
    if engine.dialect.name == "postgresql":
        numbers = f"SELECT g AS n FROM generate_series(1, {rows}) g"
    else:
        numbers = f"WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {rows}) SELECT n FROM g"
    return (f"INSERT INTO chat_log SELECT n, 'question ' || n, 'reply', NULL, NULL FROM ({numbers}) numbers",)


@pytest.mark.parametrize("increasing", ["", "id"])
def test_many_rows_need_no_memory(theirs: Engine, increasing: str) -> None:
    rows = 15_000
    run(theirs, *_many(theirs, rows))
    wide = "(SELECT id, question || replace(hex(zeroblob(3000)), '0', 'x') AS question, reply FROM chat_log) AS wide"
    if theirs.dialect.name == "postgresql":
        wide = "(SELECT id, question || repeat('x', 6000) AS question, reply FROM chat_log) AS wide"
    columns = {"prompt": "question", "answer": "reply"}
    (first,) = entries(source(theirs, f"SELECT * FROM {wide} LIMIT 1", columns=columns))  # what is imported and opened
    assert first.row is not None
    before = psutil.Process().memory_info().rss
    (part,) = source(theirs, f"SELECT * FROM {wide}", increasing=increasing, columns=columns).parts()
    highest = max(psutil.Process().memory_info().rss for n, _ in enumerate(part.read(None)) if n % 500 == 0)
    assert highest - before < 30 << 20  # the rows are 90 MB


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM chat_log RETURNING *",
        "WITH gone AS (DELETE FROM chat_log RETURNING *) SELECT * FROM gone",
        "SELECT 1; COMMIT; DELETE FROM chat_log",
        "UPDATE chat_log SET reply = 'x'",
        "DROP TABLE chat_log",
    ],
)
@pytest.mark.parametrize("increasing", ["", "id"])
def test_a_query_that_would_change_something_is_refused_and_changes_nothing(
    theirs: Engine, statement: str, increasing: str
) -> None:
    add(theirs, 1, 2)
    with pytest.raises(SetupError) as caught:
        ingest(source(theirs, statement, increasing=increasing))
    assert "\n" not in str(caught.value)
    assert told(ingest(source(theirs)))[0] == 2


def test_functions_that_write_are_refused_by_postgresql(postgres: str, home: Path) -> None:
    engine = create_engine(new_database(postgres).replace("postgresql:", "postgresql+psycopg:"))
    run(engine, "CREATE TABLE chat_log (id INTEGER)")
    writing = "CREATE FUNCTION f() RETURNS TEXT LANGUAGE sql AS $$ INSERT INTO chat_log VALUES (1) RETURNING 'x' $$"
    run(engine, writing)
    with pytest.raises(SetupError, match="read-only transaction"):
        ingest(SQL("SELECT f() AS prompt, f() AS answer", url=url(engine)))
    engine.dispose()


@pytest.mark.parametrize(
    ("query", "options", "said"),
    [
        ("SELECT * FROM nowhere", {}, "nowhere"),
        ("SELEC 1", {}, "SELEC"),
        (
            "SELECT id, question FROM chat_log",
            {"columns": {"prompt": "question"}},
            "columns id, question: a call needs",
        ),
        (LOG, {"columns": {"prompt": "q", "answer": "reply"}}, "0 columns named 'q'.*id, question, reply, stars, at"),
        ("SELECT id, question AS prompt, reply AS answer, id FROM chat_log", {"columns": {}}, "2 columns named 'id'"),
        (LOG, {"increasing": "serial"}, "serial"),
    ],
)
def test_a_query_that_gives_no_records_is_one_line_before_anything_is_read(
    theirs: Engine, query: str, options: dict[str, Any], said: str
) -> None:
    add(theirs, 1)
    with pytest.raises(SetupError, match=said) as caught:
        ingest(source(theirs, query, **options))
    assert "\n" not in str(caught.value) and not count(Quarantine)


def test_colons_and_percents_are_the_querys_own(theirs: Engine) -> None:
    add(theirs, 1)
    query = "SELECT id, question AS prompt, ' :x 12:30 100%' AS answer FROM chat_log WHERE question LIKE 'q%' -- :y"
    for increasing in ("", "id"):
        (entry,) = entries(source(theirs, query, columns={}, increasing=increasing))
        assert entry.row.response["choices"][0]["message"]["content"] == " :x 12:30 100%"  # type: ignore[union-attr]


def test_json_columns_of_postgresql_are_read_as_they_are(postgres: str, home: Path) -> None:
    engine = create_engine(new_database(postgres).replace("postgresql:", "postgresql+psycopg:"))
    run(engine, "CREATE TABLE calls (id UUID, request JSONB, response JSON, took INTERVAL, n NUMERIC, at TIMESTAMPTZ)")
    request = '{"messages": [{"role": "user", "content": "q"}]}'
    logprobs = '"logprobs": {"content": [{"token": "a", "logprob": -0.5}]}'
    response = f'{{"choices": [{{"message": {{"content": "a"}}, {logprobs}}}]}}'
    run(
        engine,
        "INSERT INTO calls VALUES (gen_random_uuid(), CAST(:q AS JSONB), CAST(:r AS JSON), '1.5 s', 2.5, now())",
        *[{"q": request, "r": response}] * 2,
    )
    query = "SELECT id, request::jsonb, response, took AS latency_ms, n, at AS timestamp FROM calls"
    for increasing in ("", "id", "n", "at"):
        spec = SQL(query.replace(", at AS", ", at, at AS"), url=url(engine), workload="w", increasing=increasing)
        found = ingest(spec)
        assert found["rows"] == ingest(spec)["rows"] == 2
    with session(write=False) as db:
        one, two = db.scalars(select(Interaction))
        assert one.external_id != two.external_id and one.latency_ms == 1500
        assert one.response["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
    engine.dispose()


def test_the_url_is_a_setting_where_it_holds_a_password(tmp_path: Path) -> None:
    secret = "postgresql://me:geheim@127.0.0.1:1/db"
    for spec in (SQL(LOG, url=secret), SQL(LOG, url="postgresql://127.0.0.1/db?password=geheim")):
        with pytest.raises(SetupError, match="FLYWHEEL_SQL_URL") as caught:
            spec.parts()
        assert "geheim" not in str(caught.value)
    with living_in(tmp_path / "home", SQL_URL=secret):
        with pytest.raises(SetupError, match="refused") as caught:
            ingest(SQL(LOG))
        assert "geheim" not in str(caught.value) and caught.value.__suppress_context__
        (part,) = SQL(LOG).parts()
    with living_in(tmp_path / "home", SQL_URL=secret.replace("geheim", "other")):
        assert SQL(LOG).parts()[0].cursor == part.cursor and "***" in part.label
    with living_in(tmp_path / "home"), pytest.raises(SetupError, match="set FLYWHEEL_SQL_URL"):
        SQL(LOG).parts()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mysql://me@host/db", "pip install mysqlclient"),
        ("snowflake://me@host/db", "pip install snowflake-sqlalchemy"),
        ("postgresql+asyncpg://me@host/db", "asynchronous"),
        ("sqlite:////nowhere/at/all.db", "does not exist"),
        ("nonsense", "is no SQLAlchemy URL"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_that_says_how(home: Path, address: str, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        ingest(SQL(LOG, url=address))


def test_columns_are_given_on_the_command_line(tmp_path: Path) -> None:
    from tests.flows.conftest import flywheel

    engine = create_engine(f"sqlite:///{tmp_path / 'theirs.db'}")
    run(engine, "CREATE TABLE log (question TEXT, reply TEXT)")
    run(engine, "INSERT INTO log VALUES ('q', 'a')")
    columns = json.dumps({"prompt": "question", "answer": "reply"})
    options = ("--source.columns", columns, "--source.workload", "w", "--json")
    done = flywheel(
        "ingest", "sql", "SELECT * FROM log", *options, home=tmp_path / "home", FLYWHEEL_SQL_URL=url(engine)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["workloads"] == ["w"]
    wrong = flywheel("ingest", "sql", "SELECT 1", "--source.columns", '{"promt": "q"}', home=tmp_path / "home")
    assert wrong.returncode == 2 and "promt" in wrong.stderr
