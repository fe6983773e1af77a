"""The command line: what a person sees after a typo, and that it answers at once."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.__main__ import COMMANDS
from flows.deployments import deployments, presets, with_preset
from tests.flows.conftest import ROOT, environment_of, flywheel

# They run servers or the shop, are for a terminal, or are what nobody should press by mistake.
NOT_DEPLOYED = {"up", "demo", "forget", "status", "doctor", "backup", "restore"}


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error; exit code 2 and nothing on standard output are checked too."""
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    return lines[0]


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = flywheel("--help", home=tmp_path)
    assert done.returncode == 0
    for command in ("run", "ingest", "release", "up", "demo"):
        assert f"    {command} " in done.stdout


def test_help_of_run_shows_each_parameter_with_its_default(tmp_path: Path) -> None:
    shown = flywheel("run", "--help", home=tmp_path).stdout
    assert "--workload" in shown
    assert "--gate.margin" in shown
    assert "--distill.rank" in shown
    assert "(default 32)" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("run", "--workload", "x", "--candidates", '[{"method": {"name": "gptq", "bits": 7}}]'),
            "Input should be 2, 3, 4, 5, 6 or 8",
        ),
        (("run", "--workload", "x", "--distill.rank", "0"), "--distill.rank '0'"),
        (("run", "--workload", "x", "--distill.learn", "imitatio"), "'imitation', 'logits'"),
        (("run", "--workload", "x", "--gate.margn", "0.1"), "--gate.margn"),
        (("curate", "--workload", "nobody.knows"), "nobody.knows"),
        (("ingest", "jsonl", "/does/not/exist.jsonl"), "/does/not/exist.jsonl"),
        (("ingest", "csv", "x.csv"), "csv"),
        (("reprot", "--open"), "did you mean report?"),
        (("release", "--rollback", "--workload", "nobody.knows"), "nobody.knows"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in complaint(flywheel(*arguments, home=tmp_path))


def test_a_bad_setting_is_named_as_it_is_set(tmp_path: Path) -> None:
    said = complaint(flywheel("curate", "--workload", "x", home=tmp_path, FLYWHEEL_GATEWAY_PORT="99999"))
    assert "FLYWHEEL_GATEWAY_PORT '99999'" in said and "65535" in said


@pytest.mark.parametrize("command", [("flywheel", "up"), ("flows.gateway",)])
def test_beyond_this_machine_nothing_is_served_without_tokens(tmp_path: Path, command: tuple[str, ...]) -> None:
    settings = {"FLYWHEEL_HOST": "0.0.0.0", "FLYWHEEL_TEACHER": ""}
    if command[0] == "flywheel":
        done = flywheel(*command[1:], home=tmp_path, **settings)
    else:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment_of(tmp_path, **settings), text=True,
            capture_output=True, timeout=120,
        )  # fmt: skip
    said = complaint(done)
    assert "FLYWHEEL_HOST '0.0.0.0'" in said and "FLYWHEEL_TOKENS" in said


def test_an_mlflow_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = "http://127.0.0.1:9"
    said = complaint(flywheel("release", "--rollback", "--workload", "x", home=tmp_path, FLYWHEEL_MLFLOW=gone))
    assert gone in said and "FLYWHEEL_MLFLOW" in said


def test_a_prefect_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = complaint(flywheel("run", "--workload", "x", home=tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api"))
    assert "http://127.0.0.1:9/api" in said and "PREFECT_API_URL" in said


def test_every_deployment_of_the_prefect_file_is_a_flow() -> None:
    for deployment in deployments():
        module, name = deployment["entrypoint"].rsplit(".", 1)
        assert getattr(importlib.import_module(module), name).name == name
        assert deployment["work_pool"]["name"] in ("flywheel-cpu", "flywheel-gpu")
    flows = {plain for _, (place, _) in COMMANDS.items() if (plain := place.split(":")[1]) not in NOT_DEPLOYED}
    assert flows <= {deployment["name"] for deployment in deployments()}, "every flow has a deployment of its name"


def test_a_preset_is_what_is_begun_with_and_options_change_it() -> None:
    merged = with_preset("quick", {"workload": "w", "distill": {"epochs": "2"}})
    assert merged["distill"] == {**presets()["quick"]["distill"], "epochs": "2"}
    assert merged["candidates"] == presets()["quick"]["candidates"]


def test_a_preset_that_does_not_exist_is_said_with_those_that_do(tmp_path: Path) -> None:
    said = complaint(flywheel("run", "--workload", "x", "--preset", "quikc", home=tmp_path))
    assert "'quikc'" in said and "fp8-on-hopper" in said


def test_json_prints_one_object_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    message = {"role": "user", "content": "where is 48213"}
    answer = {"choices": [{"message": {"role": "assistant", "content": "on its way"}}]}
    record = {"timestamp": 1756684873, "workload_id": "w", "request": {"messages": [message]}, "response": answer}
    log.write_text(json.dumps(record) + "\nnot json\n")
    done = flywheel("ingest", "jsonl", str(log), "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["rows"], counts["interactions"], counts["quarantined"]) == (2, 1, 1)


LOGS = """
import logging
from flows.__main__ import quiet_environment
quiet_environment()
import flows.stage
from prefect.logging.configuration import setup_logging
setup_logging()
logging.getLogger("flywheel.requests").warning("POST /v1/chat/completions")
"""


def test_what_a_gateway_logs_outside_of_a_run_is_no_warning_of_prefects(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGS], cwd=ROOT, env=environment_of(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
