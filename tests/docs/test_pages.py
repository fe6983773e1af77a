"""What tests of the docs see and what they overlook: each rule once with a page that is right and one that is not."""

from pathlib import Path

import pytest

from tests.docs.pages import Block, blocks, calls, changes, difference, heard, matches, rewritten

PAGE = """# A page

<!-- numbers vary: it is a clock -->
```console
$ date
12 o'clock ...
$ echo a \\
    b
a b
```

<!-- not run: it is far away -->
```console
$ ssh moon
```

```json lines
{}
```
"""


@pytest.fixture
def page(tmp_path: Path) -> list[Block]:
    (tmp_path / "page.md").write_text(PAGE)
    return list(blocks(tmp_path / "page.md"))


def test_a_page_is_read_with_its_marks(page: list[Block]) -> None:
    assert [(b.language, b.title, b.unrun, b.loose) for b in page] == [
        ("console", "", "", True), ("console", "", "it is far away", False), ("json", "lines", "", False),
    ]  # fmt: skip
    assert page[0].shown() == [("date", ["12 o'clock ..."]), ("echo a \\\n    b", ["a b"])]


@pytest.mark.parametrize(
    ("shown", "came", "loose", "same"),
    [
        ("3 rows", "3  rows", False, True),
        ("3 rows", "4 rows", False, False),
        ("3 rows", "4 rows", True, True),
        ("+0.0 points", "-1.25 points", True, True),
        ("3 rows", "no rows", True, False),
        ("served ... at ...", "served version 7 at noon", False, True),
        ("served ... at noon", "served version 7 at dawn", False, False),
        ("a ...", "a", False, True),
        ("dataset 0123456789abcdef", "dataset fedcba9876543210", False, True),
        ("dataset 0123456789abcdef", "dataset none", False, False),
        ("a", "a b", False, False),
    ],
)
def test_what_came_is_what_is_shown_but_for_what_varies(shown: str, came: str, loose: bool, same: bool) -> None:
    assert matches([shown], [came], loose) is same


def test_bars_are_not_heard_and_paths_are_as_they_look_from_their_folder() -> None:
    bar = f"{'distill, loss 0.01':<28} {'█' * 12}{'░' * 12} 5/10 3s, 3s left"
    assert heard(f"{bar}\nread /tmp/x/log.jsonl  \n", Path("/tmp/x")) == ["read log.jsonl"]


def test_a_difference_is_shown_line_by_line(page: list[Block]) -> None:
    told = difference(page[0], page[0].shown()[1], ["a c"])
    assert "-a b" in told and "+a c" in told and "page.md:4" in told


def test_rewriting_keeps_what_still_matches(page: list[Block]) -> None:
    made = rewritten(PAGE, page[0], [["rain", "9 o'clock sharp"], ["c"]])
    assert made == PAGE.replace("12 o'clock ...", "rain\n12 o'clock ...").replace("\na b\n", "\nc\n")
    assert rewritten(PAGE, page[0], [["9 o'clock sharp"], ["a b"]]) == PAGE


def test_commands_are_found_wherever_they_stand_in_a_line() -> None:
    line = "X=1 flywheel curate --workload a | jq . ; .venv/bin/flywheel up # runs"
    assert list(calls(line)) == [["curate", "--workload", "a"], ["up"]]
    assert list(calls("ID=$(flywheel curate --workload a --json | field id)")) == [
        ["curate", "--workload", "a", "--json"]
    ]
    assert list(calls("make demo")) == []


def test_a_diff_is_its_hunks() -> None:
    diff = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,3 @@\n one\n-two\n+2\n+3\n"
    assert list(changes(diff)) == [("x.py", "one\ntwo\n", "one\n2\n3\n")]
