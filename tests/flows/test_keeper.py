"""`status`, `doctor`, `backup` and `restore` as a person types them."""

import json
from pathlib import Path

from tests.flows.conftest import flywheel
from tests.shop_log import WORKLOAD, write_log


def test_status_of_an_empty_home_says_what_to_do(tmp_path: Path) -> None:
    done = flywheel("status", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "flywheel ingest jsonl PATH" in done.stdout
    assert "no schedule: `flywheel up`" in done.stdout


def test_a_home_goes_into_a_file_and_comes_back(tmp_path: Path) -> None:
    log = write_log(tmp_path / "day.jsonl", seed=1, conversations=20, day=1)
    old, new, path = tmp_path / "old", tmp_path / "new", tmp_path / "b.tar.gz"
    assert flywheel("ingest", "jsonl", str(log), home=old).returncode == 0
    made = flywheel("backup", str(path), home=old)
    assert made.returncode == 0 and "pseudonyms" in made.stdout, made.stderr
    again = flywheel("restore", str(path), home=old)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1 and "flywheel.db" in again.stderr
    back = flywheel("restore", str(path), home=new)
    assert back.returncode == 0 and "flywheel doctor" in back.stdout, back.stderr
    assert (new / "redaction.key").read_bytes() == (old / "redaction.key").read_bytes()
    assert (new / "redaction.key").stat().st_mode & 0o777 == 0o600

    shown = flywheel("status", home=new)
    assert WORKLOAD in shown.stdout and max(map(len, shown.stdout.splitlines())) <= 80 and "\x1b" not in shown.stdout
    found = json.loads(flywheel("status", "--json", home=new).stdout)
    assert found["workloads"][0]["workload"] == WORKLOAD


def test_doctor_ends_with_one_if_something_is_wrong(tmp_path: Path) -> None:
    well = flywheel("doctor", home=tmp_path)
    assert well.returncode == 0 and "0 wrong" in well.stdout, well.stdout + well.stderr
    ill = flywheel("doctor", "--json", "--check", "models", home=tmp_path, FLYWHEEL_STUDENT="./nowhere")
    assert ill.returncode == 1 and json.loads(ill.stdout)["ok"] is False
    assert flywheel("doctor", "--check", "nothing", home=tmp_path).returncode == 2
