"""`flywheel report` as a person has it, and what a turn does where no report can be drawn."""

import logging
from pathlib import Path
from typing import Any

import pytest

import flows.report
from flows.report import drawn, markdown, render
from tests.flows.conftest import flywheel
from tests.shop_log import WORKLOAD


def test_each_turn_leaves_a_report_and_says_where(turned: Any) -> None:
    home, (first, second) = turned
    for result in (first, second):
        page = Path(result["report"])
        assert page.parent == home / "reports" and result["dataset_id"] in page.read_text()
    made = flywheel("report", "--workload", WORKLOAD, home=home)
    assert made.returncode == 0, made.stderr
    assert f"Report: {second['report']}" in made.stdout and "version" in made.stdout.splitlines()[0]
    compared = flywheel("report", "--turns", home=home)
    assert f"2 turns of {WORKLOAD}: {home / 'reports'}" in compared.stdout


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    for given, said in (((), "flywheel run"), (("--turns", "--verdict", "x"), "give one of the two")):
        done = flywheel("report", *given, home=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and done.stderr.count("\n") == 1


def test_a_report_that_fails_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(verdict_id: str) -> dict[str, Any]:
        raise ValueError("no\nink")

    monkeypatch.setattr(flows.report, "report_stage", broken)
    with caplog.at_level(logging.WARNING, logger="flywheel.report"):
        assert drawn("v1") is None
    assert [record.getMessage() for record in caplog.records] == [
        "no report of the turn: no ink; `flywheel report --verdict v1` tries again"
    ]


def test_the_run_s_page_links_to_mlflow_where_a_server_shows_it() -> None:
    made = {
        "workload": "w", "headline": "int4 took over.", "why": "It was right.", "figures": ["Size: 3 MB"],
        "path": "/home/reports/v.html", "address": None, "problem": "",
    }  # fmt: skip
    assert "`/home/reports/v.html`" in markdown(made)
    there = {**made, "address": "http://mlflow:5000/#/experiments/1/runs/a/artifacts/report.html"}
    assert f"[The report]({there['address']})" in markdown(there) and there["address"] in render(there)
