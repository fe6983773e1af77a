"""`flywheel traffic` as a person sees it: piped, in 80 columns, and on the page of an ingest's run."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from tests.flows.conftest import ROOT, environment_of, flywheel
from tests.shop_log import WORKLOAD, write_log


def test_an_empty_home_is_told_what_to_do(tmp_path: Path) -> None:
    done = flywheel("traffic", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "flywheel ingest jsonl PATH" in done.stdout


def test_tables_fit_80_columns_when_piped_and_json_is_one_object(tmp_path: Path) -> None:
    for day in (1, 2):
        log = write_log(tmp_path / f"{day}.jsonl", seed=day, conversations=20, day=day)
        log.write_text(log.read_text() + f"not json {day}\n")
        assert flywheel("ingest", "jsonl", str(log), home=tmp_path / "home").returncode == 0
    done = flywheel("traffic", home=tmp_path / "home")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    for said in (WORKLOAD, "Traffic (2 days", "Feedback", "a sample", "Quarantine (2 records)", "2.jsonl"):
        assert said in done.stdout
    found = json.loads(flywheel("traffic", "--json", home=tmp_path / "home").stdout)
    assert found["workloads"][0]["workload"] == WORKLOAD and len(found["days"]) == 2


def test_the_page_of_an_ingest_gets_the_table_and_a_plot(tmp_path: Path) -> None:
    log = write_log(tmp_path / "day.jsonl", seed=1, conversations=20, day=1)
    code = (
        "import sys\nfrom flows.__main__ import quiet_environment\nquiet_environment()\n"
        "from prefect.client.orchestration import get_client\nfrom flows.ingest import ingest\n"
        "from tasks.sources.jsonl import JSONL\ningest(JSONL((sys.argv[1],)))\n"
        "with get_client(sync_client=True) as client:\n"
        "    for found in client.read_artifacts():\n        print(found.type, found.key, found.data)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log)], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env=environment_of(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert shown["traffic"].startswith("table") and WORKLOAD in shown["traffic"]
    assert shown["traffic-per-day"].startswith("image")
    picture = ElementTree.fromstring(unquote(shown["traffic-per-day"].partition("utf-8,")[2]))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{svg}rect")) == 2, "the paper, and the one day's bar"
    assert WORKLOAD in [text.text for text in picture.findall(f"{svg}text")]
