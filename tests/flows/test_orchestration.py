"""Turns that wait, are skipped, cancelled, killed or too long, and events that start them, on a Prefect server."""

import json
import os
import signal
import time
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from flows.deployments import deployments, presets
from infra.database.records import feedback
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Signal, now
from infra.once import alone
from infra.settings import SEEDLING
from tests.flows.house import House
from tests.shop_log import WORKLOAD

BASE = str(SEEDLING / "student")
SLOW = {"workload": WORKLOAD, "distill": {"base": BASE, "epochs": 100, "rank": 4, "alpha": 8}}


def begun(house: House, **parameters: Any) -> str:
    made = house.run("flywheel/flywheel", **parameters)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def holder(house: House, workload: str) -> psutil.Process:
    """The process of a turn, by what its lock file says."""
    line = (house.home / "turns" / f"{workload}.lock").read_text().splitlines()[-1]
    return psutil.Process(int(line.split()[1]))


def training(house: House) -> list[psutil.Process]:
    """The processes of a turn that trains, torchrun's too; waits for its first steps."""

    def trains() -> bool:
        try:
            return len(holder(house, WORKLOAD).children(recursive=True)) >= 2
        except (psutil.NoSuchProcess, OSError):  # the turn has not begun; the file may name the one before
            return False

    house.eventually(trains)
    us = holder(house, WORKLOAD)
    return [us, *us.children(recursive=True)]


def test_every_deployment_of_the_file_is_there_with_its_schedule_its_parameters_and_its_trigger(house: House) -> None:
    for described in deployments():
        flow = described["entrypoint"].rsplit(".", 1)[1]
        found = house.deployment(f"{flow}/{described['name']}")
        asked = [one["cron"] for one in described.get("schedules", [])]
        assert [one["schedule"]["cron"] for one in found["schedules"] if "cron" in one["schedule"]] == asked
        assert found["parameters"] == described.get("parameters", {})
        assert found["description"] == described["description"]
    assert {"quick", "thorough", "edge-int4", "fp8-on-hopper"} == set(presets())
    assert len([one for one in deployments() if one.get("triggers")]) == 1


def test_the_second_turn_of_a_workload_waits_and_the_third_is_skipped_with_the_reason(house: House) -> None:
    with alone(house.home / "turns" / "small.lock", pytest.fail) as enter:
        enter()
        second = begun(house, workload="small")
        waits = house.comes_to(second, "Waiting")
        assert f"process {os.getpid()} on" in waits["message"] and waits["type"] == "RUNNING"
        third = begun(house, workload="small")
        skipped = house.comes_to(third, "Skipped")
        assert skipped["type"] == "CANCELLED"
        assert "'small' is under way" in skipped["message"] and f"process {os.getpid()}" in skipped["message"]
        assert house.state_of(second)["name"] == "Waiting"
    ended = house.ended("flywheel/flywheel", id=second)
    assert "min_rows" in ended["state"]["message"], "it had its turn: there is too little traffic for a dataset"


def test_new_feedback_turns_the_wheel_of_its_workload_and_not_again_within_the_cool_down(house: House) -> None:
    said = {"id": "t1", "record_id": "1", "kind": "thumb", "value": 1}
    with session() as db:
        store(db, [feedback(said, source="jsonl", at=now())])
    before = {run["id"] for run in house.runs_of("flywheel/flywheel")}
    for _ in range(2):
        watched = house.run("watch/watch", workload="small", signal={"feedback": 1})
        assert house.ended("watch/watch", id=watched.json()["id"])["state_type"] == "COMPLETED"
    started = house.eventually(lambda: [r for r in house.runs_of("flywheel/flywheel") if r["id"] not in before])
    assert [(run["parameters"], run["created_by"]["type"]) for run in started] == [
        ({"workload": "small"}, "AUTOMATION")
    ]
    with session(write=False) as db:
        assert db.scalar(select(func.count()).select_from(Signal)) == 1
    house.ended("flywheel/flywheel", id=started[0]["id"])


def test_a_killed_turn_lets_go_and_a_cancelled_one_is_gone_with_its_children_and_is_gone_on_with(house: House) -> None:
    killed = begun(house, **SLOW)
    processes = training(house)
    os.kill(processes[0].pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=60)
    assert not [process for process in processes if alive(process)]
    assert house.ended("flywheel/flywheel", id=killed)["state_type"] == "CRASHED"

    cancelled = begun(house, **SLOW)
    processes = training(house)
    assert len(processes) >= 3, "torchrun and its child"
    (checkpoint,) = house.eventually(lambda: list((house.home / "students").glob("*.work/checkpoint.safetensors")))
    house.set_state(cancelled, "CANCELLING")
    asked = time.monotonic()
    psutil.wait_procs(processes, timeout=60)
    print(f"cancelled and gone after {time.monotonic() - asked:.1f} s")
    assert not [process for process in processes if alive(process)]
    assert house.comes_to(cancelled, "Cancelled")
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as saved:
        assert json.loads(saved.metadata()["state"])["step"] > 0


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_turn_over_its_budget_is_stopped_and_says_so(house: House) -> None:
    run = begun(house, **SLOW, hours=0.005)
    ended = house.ended("flywheel/flywheel", id=run)
    assert (ended["state_type"], ended["state_name"]) == ("FAILED", "TimedOut")
    assert "took over hours=0.005 and was stopped; run it again" in ended["state"]["message"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(house.home) in " ".join(p.info["cmdline"] or [])
                and "torch.distributed.run" in " ".join(p.info["cmdline"] or [])]  # fmt: skip
