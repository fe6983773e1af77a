"""The README and the docs name what is there: files, settings, commands."""

import re
from pathlib import Path

from flows.__main__ import COMMANDS
from infra.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_every_setting_is_in_the_table_and_no_other() -> None:
    known = {f"FLYWHEEL_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"^\| `(FLYWHEEL_\w+)`", OPERATIONS, re.MULTILINE)) == known
    for page in PAGES:
        named = {name.removesuffix("_FILE") for name in re.findall(r"FLYWHEEL_[A-Z_]+", page.read_text())}
        assert named <= known, page.name


def test_every_command_it_shows_exists() -> None:
    shown = set(re.findall(r"bin/flywheel (\w+)", README))
    assert shown and shown <= set(COMMANDS)


def test_every_file_of_the_map_exists() -> None:
    named = set(re.findall(r"\b\w+\.(?:py|toml|yaml)\b", README.split("## The map")[1].split("## ")[0]))
    there = {path.name for room in ("flows", "tasks", "quant", "infra", "bench") for path in (ROOT / room).rglob("*.*")}
    assert named and named <= there


def test_the_numbers_have_been_filled_in() -> None:
    assert not re.search(r"^[A-Z]+_[A-Z]+$", README, re.MULTILINE)
