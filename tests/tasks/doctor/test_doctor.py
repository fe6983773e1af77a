"""Each check finds what it is for, in a house where just that is wrong; a check that hangs or raises is a finding."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from infra.database.session import close, session
from infra.gateway.journal import Journal
from infra.settings import settings
from tasks.doctor import CHECKS
from tasks.doctor.examine import examine
from tasks.doctor.finding import Level, run
from tests.conftest import answering, living_in, new_database


def wrong(check: str) -> list[tuple[str, str, str]]:
    return [(f["level"], f["said"], f["mend"]) for f in examine(check)["findings"] if f["level"] != "ok"]


def test_a_check_that_hangs_or_raises_is_a_finding_and_keeps_what_it_found() -> None:
    def hangs() -> Iterator[tuple[Level, str, str]]:
        yield "ok", "first", ""
        time.sleep(60)

    def raises() -> Iterator[tuple[Level, str, str]]:
        yield "ok", "first", ""
        raise KeyError("x")

    assert [(f.level, f.said) for f in run("a", hangs, 0.2)] == [("ok", "first"), ("wrong", "no answer within 0 s")]
    assert [f.level for f in run("b", raises, 5)] == ["ok", "wrong"]


def test_an_empty_home_is_in_order(home: Path) -> None:
    for check in sorted(CHECKS.keys() - {"engines"}):
        assert all(level != "wrong" for level, _, _ in wrong(check)), check
    assert not home.exists() or not list(home.iterdir()), "who looks changes nothing"


def test_a_typo_in_a_variable_is_told_with_what_was_meant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TECHER_KEY", "s3cret")
    ((level, said, mend),) = wrong("settings")
    assert level == "warning" and "FLYWHEEL_TEACHER_KEY" in said and "unset FLYWHEEL_TECHER_KEY" in mend
    assert "s3cret" not in said + mend


def test_a_gateway_for_all_the_world_without_tokens_is_wrong(tmp_path: Path) -> None:
    with living_in(tmp_path, HOST="0.0.0.0"):
        assert [level for level, _, _ in wrong("settings")] == ["wrong"]


def test_a_key_that_others_can_read_is_wrong(home: Path) -> None:
    home.mkdir()
    (home / "redaction.key").write_text("ab" * 32)
    (home / "redaction.key").chmod(0o644)
    ((level, _, mend),) = wrong("secrets")
    assert level == "wrong" and mend == f"chmod go= '{home / 'redaction.key'}'"


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_another_migration_is_told(revision: str, database: str) -> None:
    with session() as db:
        db.execute(text("UPDATE flywheel_version SET version_num = :it"), {"it": revision})
    close()
    ((level, said, _),) = wrong("database")
    assert level == ("warning" if revision == "0001" else "wrong") and revision in said


def test_a_database_that_is_not_there_is_wrong(tmp_path: Path) -> None:
    with living_in(tmp_path, DATABASE="postgresql://me:s3cret@127.0.0.1:9/flywheel"):
        ((level, said, mend),) = wrong("database")
    assert level == "wrong" and "s3cret" not in said and "FLYWHEEL_DATABASE" in mend


def test_a_database_that_may_only_be_read_is_wrong(postgres: str, tmp_path: Path) -> None:
    url = new_database(postgres)
    with living_in(tmp_path, DATABASE=url):
        with session() as db:
            db.execute(text(f"ALTER DATABASE {make_url(url).database} SET default_transaction_read_only = on"))
        close()
        ((level, said, _),) = wrong("database")
    assert level == "wrong" and "cannot be written to" in said


def test_records_that_wait_and_what_a_dead_run_left_are_told(home: Path) -> None:
    Journal().append(b"{}")
    left = home / "datasets" / "x.partial"
    left.mkdir(parents=True)
    old = time.time() - 2 * 86400
    os.utime(left, (old, old))
    assert [mend for _, _, mend in wrong("leftovers")] == ["flywheel ingest gateway", f"rm -r '{left}'"]


class Behind(BaseHTTPRequestHandler):
    """A server whose clock is an hour behind."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return f"{datetime.now(UTC) - timedelta(hours=1):%a, %d %b %Y %H:%M:%S GMT}"

    def log_message(self, *_: object) -> None: ...


def test_a_clock_that_is_behind_is_told(tmp_path: Path) -> None:
    with (
        answering(ThreadingHTTPServer(("127.0.0.1", 0), Behind)) as address,
        living_in(tmp_path, SERVER=f"{address}/v1", SERVER_FOLDER="x"),
    ):
        (found,) = wrong("clocks")
    assert found[0] == "wrong" and "behind" in found[1]


def test_models_that_are_not_there_are_told(tmp_path: Path) -> None:
    with living_in(tmp_path, STUDENT="./nowhere", TEACHER="http://127.0.0.1:9/v1"):
        said = [text for level, text, _ in wrong("models") if level == "wrong"]
    assert len(said) == 2 and "FLYWHEEL_STUDENT" in said[0] and "teacher" in said[1]


def test_a_champion_whose_files_changed_is_wrong(home: Path, tmp_path: Path) -> None:
    from infra import promotions, registry

    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.gguf").write_text("weights")
    version, _ = registry.register("shop", tmp_path / "artifact", metrics={}, tags={}, parameters={}, run_name="x")
    promotions.promote("shop", version, "release", "passed")
    assert not wrong("mlflow")
    registry.version("shop", version).folder.joinpath("model.gguf").write_text("changed")
    ((level, _, mend),) = wrong("mlflow")
    assert level == "wrong" and mend == "flywheel release --rollback --workload shop"
    assert settings().home == home
