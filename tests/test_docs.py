"""What the README and the docs show is what happens: every block with a language is run or read.

Commands of one page are run in one shell, in a folder with the log of a small shop, page after page; `tests/docs/` has
the rules. `pytest tests/test_docs.py --rewrite-docs` writes into the pages what came in the place of what is shown.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from infra.database.records import parse
from tests.docs.pages import Block, blocks, difference, matches, rewritten, spans
from tests.docs.shop import ROOT, Shop, opened, options, parsed

Said = dict[Block, list[list[str]]]

FIRST = ["README.md", "docs/gate.md", "docs/operations.md"]  # what they leave behind the others need
PAGES = [*map(ROOT.joinpath, FIRST), *sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / n for n in FIRST})]
BLOCKS = [block for page in PAGES for block in blocks(page)]
EXTENDED = {block.page for block in BLOCKS if block.language == "diff"}  # their options are on their own menus
LANGUAGES = {"console", "python", "json", "yaml", "diff"}


def named(block: Block) -> str:
    return block.place


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with opened(tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest.fixture(scope="module")
def said(shop: Shop, request: pytest.FixtureRequest) -> Said:
    """What every command of every page said."""
    found: Said = {}
    for page in PAGES:
        found |= shop.say([block for block in BLOCKS if block.page == page])
    if request.config.getoption("--rewrite-docs"):
        rewrite(found)
    return found


def rewrite(said: Said) -> None:
    for page in PAGES:
        text = page.read_text()
        for block in reversed([block for block in blocks(page) if block.language == "console" and not block.unrun]):
            text = rewritten(text, block, said[block])
        page.write_text(text)


@pytest.mark.parametrize("block", [b for b in of("console") if not b.unrun], ids=named)
def test_a_command_says_what_is_shown(said: Said, block: Block) -> None:
    wrong = [
        difference(block, one, came)
        for one, came in zip(block.shown(), said[block], strict=True)
        if not matches(one.output, came, block.loose)
    ]
    assert not wrong, "\n\n".join([*wrong, "`--rewrite-docs` takes what came."])


@pytest.mark.parametrize("block", [b for b in of("console") if b.page not in EXTENDED], ids=named)
def test_the_command_line_has_every_option_that_is_shown(block: Block) -> None:
    assert [(given, problem) for given, problem in parsed(block) if problem] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_within_a_line_exist(page: Path) -> None:
    known = options()
    for span in spans(page):
        command = re.match(r"(?:\S*/)?flywheel (\w+)", span)
        assert not command or command[1] in known, span
        may = known[command[1]] if command else set().union(*known.values())
        if command or re.match(r"--\w+\.", span):
            assert {word for word in span.split() if word.startswith("--")} <= may, span


@pytest.mark.parametrize("block", of("python"), ids=named)
def test_python_runs(said: Said, block: Block) -> None:
    if not block.text.startswith(">>> "):
        ast.parse(block.text)
    if not block.unrun and not block.title:
        assert said[block] == [[]], "\n".join(said[block][0])


def test_files_that_are_shown_are_in_the_style_of_the_house(shop: Shop, said: Said) -> None:
    files = [str(shop.path(block)) for block in of("python") if block.title]
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "--config", str(ROOT / "pyproject.toml"), *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [*of("json"), *of("yaml")], ids=named)
def test_data_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
        return
    for record in block.text.splitlines() if block.title == "lines" else [block.text]:
        read = json.loads(record)
        if block.title == "lines":
            parse(read, source="jsonl", at=datetime.now(UTC))


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} - {""} <= LANGUAGES
    plain = [block for block in BLOCKS if not block.language]
    assert not [b.place for b in plain if any(line.startswith(("$ ", "flywheel ")) for line in b.text.splitlines())]


def anchors(page: Path) -> set[str]:
    """What can be linked to in a page: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            place = page.parent / file if file else page
            assert place.exists() and (not anchor or anchor in anchors(place)), target
