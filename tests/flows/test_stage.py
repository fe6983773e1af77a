"""What is shown while a stage runs."""

import io
import sys
import time

import pytest

from flows.stage import Bar


def shown(monkeypatch: pytest.MonkeyPatch, total: int) -> list[str]:
    """The lines of a bar that nobody watches and that is moved once a second, eighty times."""
    seconds = iter(range(1000, 2000))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: float(next(seconds)))
        patch.setattr(sys, "stderr", written := io.StringIO())
        with Bar() as bar:
            for n in range(1, 81):
                bar(100 * n, total, "ingest, rows")
    return written.getvalue().splitlines()


def test_a_bar_says_how_much_is_done_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 8000)
    assert [line.split("/")[0].split()[-1] for line in lines] == ["300", "1800", "3300", "4800", "6300", "7800", "8000"]
    assert lines[-1].endswith("8000/8000 79s, 0s left") and all("█" in line for line in lines[1:])


def test_a_bar_counts_where_nobody_knows_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 0)
    assert [line.split() for line in lines] == [
        ["ingest,", "rows", str(100 * n), f"{n - 1}s"] for n in range(3, 81, 15)
    ]  # fmt: skip
