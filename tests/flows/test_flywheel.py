"""The whole wheel through the command line: two turns, a rollback, and a run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from flows.flywheel import learned
from tasks.lessons.top_k import CORRECTED
from tests.flows.conftest import ROOT, TURN, environment_of, flywheel
from tests.shop_log import WORKLOAD, write_log


def rows(home: Path, query: str, file: str = "flywheel.db") -> list[Any]:
    with create_engine(f"sqlite:///{home / file}").connect() as db:
        return list(db.execute(text(query)))


def test_a_turn_ends_with_a_served_champion_and_the_next_is_held_against_it(turned: Any) -> None:
    _, (first, second) = turned
    version = first["version"]
    assert (first["outcome"], first["reference"]) == ("promote", "teacher")
    assert (second["outcome"], second["reference"]) == ("promote", f"champion:{version}")
    served = {"workload": WORKLOAD, "version": version, "engine": "llamacpp", "gateway": "not running"}
    assert first["served"] == served
    assert {row["name"] for row in first["rows"]} >= {"int8 PTQ (rtn)", "int4 PTQ (gptq)", "int4 QAT (qat)"}


def test_every_interaction_is_somewhere_and_no_holdout_item_trains_later(turned: Any) -> None:
    home, _ = turned
    held = {r[0] for r in rows(home, "SELECT interaction_id FROM dataset_item WHERE split = 'holdout'")}
    trained = {r[0] for r in rows(home, "SELECT interaction_id FROM dataset_item WHERE split = 'train'")}
    both = rows(home, "SELECT a.interaction_id FROM dataset_item a JOIN dataset_item b USING (interaction_id) "
                      "JOIN dataset d ON d.id = a.dataset_id JOIN dataset e ON e.id = b.dataset_id "
                      "WHERE a.split = 'holdout' AND b.split = 'train' AND d.created < e.created")  # fmt: skip
    assert held and trained and not both


def test_lineage_leads_from_the_version_back_to_the_interactions(turned: Any) -> None:
    home, (first, _) = turned
    where = f"v.model_version = '{first['version']}' AND v.dataset_id = '{first['dataset_id']}'"
    ((candidate, student, dataset),) = rows(
        home,
        f"""
        SELECT c.id, s.id, s.dataset_id FROM candidate c JOIN student s ON s.id = c.student_id
        JOIN verdict v ON v.candidate_id = c.id WHERE {where} AND c.name = '{first["winner"]}'""",
    )
    assert candidate and student and dataset == first["dataset_id"]
    for table in ("dataset", "student", "candidate", "scorecard", "verdict"):
        assert rows(home, f"SELECT count(*) FROM {table} WHERE flow_run_id IS NULL") == [(0,)]


def test_rollback_gives_previous_its_place_back_and_back_again(turned: Any) -> None:
    home, (first, second) = turned
    once, twice = (
        json.loads(flywheel("release", "--rollback", "--workload", WORKLOAD, "--json", home=home).stdout)
        for _ in range(2)
    )
    assert {once["champion"], once["previous"]} == {first["version"], second["version"]}
    assert (twice["champion"], twice["previous"]) == (once["previous"], once["champion"])


def test_a_teacher_that_was_not_followed_is_said_with_the_reason() -> None:
    counts = {"feedback": {}, "prefix": None, "train": 9, "validation": 1, "holdout": 4}
    student = {"prompt_tokens_sent": 20, "prompt_tokens_read": 20, "followed": 6}
    for why, shown in (({CORRECTED: 3}, []), ({CORRECTED: 1, "other tokens": 2}, ["other tokens (2)"])):
        said = learned({"dataset": counts, "students": {"causal": {**student, "not_followed": why}}})
        assert [line.split("not: ")[1] for line in said if "followed in 6" in line] == shown


def killed_once(home: Path, command: list[str], there: str) -> None:
    """Run the wheel and kill it, with everything it started, as soon as a file that matches `there` is there."""
    running = subprocess.Popen(
        [sys.executable, "-m", "flows", *command], cwd=ROOT, env=environment_of(home), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(home.glob(there)):
        assert running.poll() is None and time.monotonic() < deadline, f"{there} did not come"
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def test_a_run_killed_in_every_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    log = write_log(tmp_path / "day.jsonl", seed=5, conversations=90, day=3)
    command = [*TURN, "--source.paths", json.dumps([str(log)]), "--json"]
    students = []
    for there in (
        "flywheel.db",  # ingest
        "datasets/*/train.parquet",  # the end of curate
        "students/*.work/checkpoint.safetensors",  # in the middle of training
        "candidates/*/model.gguf",  # one candidate of three
        "scorecards/*",
        "mlflow-artifacts/**/model.gguf",  # a version registered, the verdict not yet written
    ):
        killed_once(home, command, there)
        if "candidates" in there:
            students = rows(home, "SELECT id, created FROM student")
    done = flywheel(*command, home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "promote"
    assert rows(home, "SELECT id, created FROM student") == students, "the student was trained again"
    calls = len(log.read_text().splitlines())
    for table, count in {"interaction": calls, "dataset": 1, "candidate": 3, "verdict": 3}.items():
        assert rows(home, f"SELECT count(*) FROM {table}") == [(count,)], table
    assert rows(home, "SELECT count(*) FROM model_versions", "mlflow.db") == [(3,)]
    assert rows(home, "SELECT count(*) FROM runs", "mlflow.db") == [(3,)]
    assert not list(home.rglob("*.partial*"))
