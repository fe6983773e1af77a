"""A turn's report, from a real database and with a real MLflow: its numbers, its text, what it does without."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import pytest
from sqlalchemy import select

from infra import reports
from infra.database.session import session
from infra.database.tables import Rollout, Scorecard, Student, Verdict, now
from infra.settings import SetupError, settings
from tasks.forget import forget
from tasks.release import GateSpec, rollback
from tasks.report import numbers
from tasks.report.report import comparison, report
from tests.conftest import living_in
from tests.tasks.report.made_turn import judged, turn
from tests.tasks.test_curate import question


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the file: MLflow takes seconds to make its tables. Each test has a workload of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def at_home(shared_home: Path) -> Iterator[None]:
    with living_in(shared_home, TEACHER=""):
        yield


def text_of(page: str) -> str:
    """What a reader reads."""
    body = page.split("</style>")[1]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def written(result: dict[str, Any]) -> str:
    return Path(report(result["verdict"])["path"]).read_text()


def client() -> Any:
    return mlflow.MlflowClient(settings().mlflow_uri)


def test_its_numbers_are_those_of_the_scorecards() -> None:
    result = turn("numbers")
    said = text_of(written(result))
    with session(write=False) as db:
        cards = db.scalars(select(Scorecard).where(Scorecard.dataset_id == result["dataset_id"])).all()
        verdicts = db.scalars(select(Verdict).where(Verdict.dataset_id == result["dataset_id"])).all()
    assert len(cards) == 3 and len(verdicts) == 2
    for metrics in (card.metrics for card in cards):
        interval = f"{numbers.percent(metrics['low'])} to {numbers.percent(metrics['high'])}"
        assert f"{numbers.percent(metrics['quality'])} {interval}" in said
        assert numbers.size(metrics["bytes"]) in said and numbers.ms(metrics["latency_p50_ms"]) in said
    for verdict in verdicts:
        finding = verdict.reasons["findings"][0]
        shown = f"{numbers.points(finding['difference'])} at least {numbers.points(finding['low'])}"
        assert shown in said and verdict.outcome in said
    assert "int4 took over from the teacher, as version 1." in said and "0.20×" in said
    assert "machine time 20 s" not in said and "100 s" in said and "80 % less machine time" in said


def test_every_part_is_there_and_the_same_verdict_gives_the_same_bytes() -> None:
    result = turn("whole")
    first = written(result)
    assert re.findall(r'<section id="(\w+)"', first) == [
        "models", "tradeoff", "slices", "confusion", "examples", "bill", "traffic", "training", "lineage",
    ]  # fmt: skip
    assert written(result) == first
    said = text_of(first)
    for told in (
        "Loss of the lesson",
        "Loss on validation rows",
        "held out",
        "corrected 1",
        "rtn",
        result["dataset_id"],
    ):
        assert told in said
    assert first.count("<svg") == 2 * 7 and 'href="http' not in first and "src=" not in first


class Tags(HTMLParser):
    """The tags of a page, with their attributes, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_text_from_traffic_is_only_text() -> None:
    page = written(turn("hostile<script>alert(1)</script>", hostile=True))
    said = text_of(page)
    for quoted in ("</style><script>window.hacked = 1</script>", "\"quotes\" 'and' &amp;", "שלום", "🌱"):
        assert quoted in said
    assert "w" * 700 not in page and page.count("</style>") == 1
    tags = Tags(page).found
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in tags}
    names = {name for _, attributes in tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "style", "href")}


@pytest.mark.parametrize(("workload", "how", "headline"), [
    ("rejected", {"wrong": range(25)}, "No candidate was good enough; the teacher went on serving."),
    ("undecided", {"wrong": range(2, 9)}, "Nothing was shown either way; the teacher went on serving."),
    ("silent", {"opinions": False}, "Nobody said anything of them."),
    ("sorted", {"kind": "classifier"}, "60 steps over 112 examples."),
    ("endpoint", {"teacher": {"bytes": None, "seconds_per_request": None, "latency_p50_ms": None}},
     "What the teacher costs is not known"),
    ("priced", {"teacher": {"usd_per_1000": 3.0}}, "took over from the teacher"),
    ("small", {"gate": GateSpec(margin=0.2, min_holdout=1000)}, "gate.min_holdout is 1000"),
])  # fmt: skip
def test_it_is_drawn_whatever_came_of_the_turn(workload: str, how: dict[str, Any], headline: str) -> None:
    result = turn(workload, **how)
    said = text_of(written(result))
    assert headline in said, said[:600]
    assert "nan" not in said.split() and "None" not in said


def test_what_is_no_longer_on_file_is_said() -> None:
    result = turn("lost")
    with session(write=False) as db:
        (student,) = db.scalars(select(Student).where(Student.dataset_id == result["dataset_id"]))
        cards = db.scalars(select(Scorecard.path).where(Scorecard.dataset_id == result["dataset_id"])).all()
    shutil.rmtree(settings().home / "datasets" / result["dataset_id"])
    shutil.rmtree(student.path)
    said = text_of(written(result))
    assert "The holdout cannot be read" in said and said.count("its files are no longer on file") == 2
    assert "Loss on validation rows" in said and "Loss of the lesson" not in said, "the database has the epochs"
    for card in cards:
        Path(card).unlink()
    said = text_of(written(result))
    assert "are not both on file" in said and "95 % confidence it loses at most" in said


def test_it_is_with_the_version_in_mlflow_and_the_version_says_so() -> None:
    result = turn("shown")
    made = report(result["verdict"])
    version = client().get_model_version("shown", result["version"])
    assert version.tags["flywheel.report"] == f"runs:/{version.run_id}/report.html"
    assert (
        version.description.startswith("[The report of this turn](#/experiments/")
        and "# shown: int4" in version.description
    )
    local = mlflow.artifacts.download_artifacts(version.tags["flywheel.report"], tracking_uri=settings().mlflow_uri)
    assert Path(local).read_bytes() == Path(made["path"]).read_bytes() and made["problem"] == ""
    assert report(result["verdict"])["path"] == made["path"]
    assert client().get_model_version("shown", result["version"]).description == version.description


def test_it_is_with_a_version_that_did_not_pass_too() -> None:
    result = turn("unserved", wrong=range(25))
    for _ in range(2):
        report(result["verdict"])
    versions = client().search_model_versions("name = 'unserved'")
    assert versions and {version.tags["verdict"] for version in versions} == {"reject"}
    for version in versions:
        assert version.tags["flywheel.report"] == f"runs:/{version.run_id}/report.html"
        assert reports.FILE in [file.path for file in client().list_artifacts(version.run_id)]
    experiment = client().get_experiment_by_name("flywheel unserved")
    assert len(client().search_runs([experiment.experiment_id])) == len(versions), "and nowhere else"


def test_a_turn_of_before_every_candidate_was_registered_keeps_its_one_run_and_what_is_forgotten_leaves_it() -> None:
    result = turn("unregistered", wrong=range(25))
    versions = client().search_model_versions("name = 'unregistered'")
    with session() as db:
        for verdict in db.scalars(select(Verdict).where(Verdict.workload == "unregistered")):
            verdict.model_version = verdict.mlflow_run_id = None
    for _ in range(2):
        made = report(result["verdict"])
    experiment = client().get_experiment_by_name("flywheel unregistered")
    others = {version.run_id for version in versions}
    runs = client().search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.info.run_id not in others]
    assert run.data.tags["verdict"] == "reject" and run.info.status == "FINISHED"
    assert [file.path for file in client().list_artifacts(run.info.run_id)] == [reports.FILE]

    with session() as db:  # and since then the same turn was decided again, which registers
        for verdict, version in zip(
            db.scalars(select(Verdict).where(Verdict.workload == "unregistered")), versions, strict=True
        ):
            verdict.model_version, verdict.mlflow_run_id = version.version, version.run_id
    page = Path(made["path"]).read_text()
    n = next(n for n in range(160) if question(n) in page)
    forget(interaction=f"unregistered-{n}")
    for run_id in (run.info.run_id, *others):
        assert question(n) not in Path(client().download_artifacts(run_id, reports.FILE)).read_text()


def test_a_second_turn_is_held_against_the_champion_and_both_are_compared() -> None:
    first = turn("twice")
    Path(report(first["verdict"])["path"]).unlink()
    gate = GateSpec(margin=0.25, min_holdout=10)
    second = judged(first["dataset_id"], "twice", (2,), None, False, "causal", gate, number=2)
    assert second["reference"] == "champion:1"
    said = text_of(written(second))
    assert "took over from version 1 (int4)" in said and "champion 1" in said
    rollback("twice")
    with session() as db:
        db.add(
            Rollout(
                workload="twice", version="9", reference="1", step=0, step_began=now(), tally={}, status="rolled back",
                ended=now(), spec={},
            )
        )  # fmt: skip
    made = comparison("twice")
    page = Path(made["path"]).read_text()
    said = text_of(page)
    assert made["turns"] == 2 and "2 turns of the wheel, 2 with a new champion." in said
    for told in (
        "version 1 promoted",
        "back to version 1",
        "rollout of version 9 rolled back",
        first["dataset_id"][:0],
    ):
        assert told in said
    assert page.count('<tr class="chosen">') == 2 and page.count("<svg") == 4


def test_what_is_asked_for_must_be_there() -> None:
    with pytest.raises(SetupError, match="'nothing' is unknown"):
        report("nothing")
    with pytest.raises(SetupError, match="no verdict of workload 'nobody'"):
        report(workload="nobody")


def test_without_mlflow_the_file_is_written_and_the_reason_told() -> None:
    result = turn("offline")
    with living_in(settings().home, TEACHER="", MLFLOW="http://127.0.0.1:9"):
        made = report(result["verdict"])
    assert Path(made["path"]).exists() and "127.0.0.1:9" in made["problem"]


def test_who_is_forgotten_leaves_the_reports_here_and_in_mlflow() -> None:
    result = turn("forgets")
    before = report(result["verdict"])
    page = Path(before["path"]).read_text()
    rows = [n for n in range(160) if question(n) in page]
    assert rows, "somebody is quoted"
    version = client().get_model_version("forgets", result["version"])
    for n in rows:
        assert forget(interaction=f"forgets-{n}", dry_run=True)["reports"] == 1
        assert question(n) in Path(before["path"]).read_text()
        assert forget(interaction=f"forgets-{n}")["reports"] == 1
        local = mlflow.artifacts.download_artifacts(version.tags["flywheel.report"], tracking_uri=settings().mlflow_uri)
        for copy in (Path(before["path"]), Path(local)):
            assert question(n) not in copy.read_text()
    assert "were erased since" in text_of(Path(before["path"]).read_text())


def test_a_report_that_cannot_be_made_again_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = turn("unmakable")
    made = report(result["verdict"])
    page = Path(made["path"]).read_text()
    n = next(n for n in range(160) if question(n) in page)

    def broken(*_: Any) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("tasks.report.erased.html", broken)
    forget(interaction=f"unmakable-{n}")
    assert not Path(made["path"]).exists()
    version = client().get_model_version("unmakable", result["version"])
    local = mlflow.artifacts.download_artifacts(version.tags["flywheel.report"], tracking_uri=settings().mlflow_uri)
    assert "This report was erased" in Path(local).read_text() and question(n) not in Path(local).read_text()


def test_the_folded_specs_are_json() -> None:
    page = written(turn("folded"))
    folded = [html.unescape(found) for found in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(folded) >= 8 and all(isinstance(json.loads(document), dict) for document in folded)
