"""`python -m infra.database.migrate`, as a deployment runs it before it starts what serves."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from infra.database.migrate import main
from infra.settings import settings


def test_the_tables_are_made_once_and_the_second_time_changes_nothing(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (main(), main()) == (0, 0)
    assert (
        "interaction"
        in inspect(create_engine(database.replace("postgresql:", "postgresql+psycopg:"))).get_table_names()
    )
    assert "newest migration" in capsys.readouterr().out


def test_a_database_that_is_away_is_one_line_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.parent / "url").write_text("postgresql://flywheel:not-to-be-shown@127.0.0.1:1/flywheel\n")
    monkeypatch.setenv("FLYWHEEL_DATABASE_FILE", str(home.parent / "url"))
    settings.cache_clear()
    assert main() == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "127.0.0.1:1" in said and "not-to-be-shown" not in said
