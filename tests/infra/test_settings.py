"""Settings that stand in files, as secrets in containers do."""

from pathlib import Path

import pytest

from flows.__main__ import main
from flows.cluster import given
from infra.settings import SetupError, settings


@pytest.fixture
def secret(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that FLYWHEEL_TOKENS_FILE names."""
    file = tmp_path / "tokens"
    file.write_text("web:not-to-be-shown-anywhere\n")
    monkeypatch.setenv("FLYWHEEL_TOKENS_FILE", str(file))
    settings.cache_clear()
    return file


def test_a_setting_is_read_from_its_file_without_the_line_end(secret: Path) -> None:
    assert settings().tokens.get_secret_value() == "web:not-to-be-shown-anywhere"
    assert "not-to-be-shown" not in repr(settings())


def test_a_file_is_judged_as_a_value_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "port").write_text("8081\n")
    monkeypatch.setenv("FLYWHEEL_GATEWAY_PORT_FILE", str(tmp_path / "port"))
    settings.cache_clear()
    assert settings().gateway_port == 8081
    (tmp_path / "port").write_text("none")
    settings.cache_clear()
    assert main(["traffic"]) == 2
    assert "FLYWHEEL_GATEWAY_PORT 'none'" in capsys.readouterr().err


def test_given_both_ways_is_a_mistake(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TOKENS", "web:another-one-of-them")
    with pytest.raises(SetupError, match="FLYWHEEL_TOKENS and FLYWHEEL_TOKENS_FILE are both set") as told:
        settings()
    assert "another-one" not in str(told.value) and "not-to-be-shown" not in str(told.value)


def test_a_file_that_is_missing_is_said_in_one_line(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret.unlink()
    assert main(["traffic"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"FLYWHEEL_TOKENS_FILE names '{secret}', which cannot be read: No such file or directory" in said


def test_a_file_that_is_no_text_is_said_too(secret: Path) -> None:
    secret.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match="it is no text"):
        settings()


def test_what_stands_in_files_goes_to_other_machines_as_values(secret: Path) -> None:
    carried = given()
    assert carried["FLYWHEEL_TOKENS"] == "web:not-to-be-shown-anywhere"
    assert "FLYWHEEL_TOKENS_FILE" not in carried
