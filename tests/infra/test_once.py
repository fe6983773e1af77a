"""Things that are made once: by processes that ask at the same time, and after one that was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.flows.conftest import ROOT

# Each makes the same file, slowly; what it says is who made it.
PROGRAM = """
import os, sys, time
from pathlib import Path
from infra.once import once
file, seconds = Path(sys.argv[1]), float(sys.argv[2])
def make():
    (file.parent / f"begun-{os.getpid()}").touch()
    time.sleep(seconds)
    file.write_text(str(os.getpid()))
    return file.read_text()
print(once(file.with_suffix(".lock"), lambda: file.read_text() if file.exists() else None, make))
"""


def start(file: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(file), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(folder: Path) -> set[int]:
    return {int(file.name.split("-")[1]) for file in folder.glob("begun-*")}


def test_of_processes_that_ask_at_once_one_makes_it_and_the_others_get_it(tmp_path: Path) -> None:
    file = tmp_path / "made"
    running = [start(file, 1.0) for _ in range(3)]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    (maker,) = begun(tmp_path)
    assert said == [str(maker)] * 3
    assert (tmp_path / "made.lock").read_text().count("process") == 1


def test_a_maker_that_is_killed_is_followed_at_once_and_who_waits_is_told_for_whom(tmp_path: Path) -> None:
    file = tmp_path / "made"
    first = start(file, 600)
    while not begun(tmp_path):
        time.sleep(0.02)
    second = start(file, 0)
    assert second.stderr is not None
    told = second.stderr.readline()
    assert f"process {first.pid} on " in told and "waiting" in told
    assert begun(tmp_path) == {first.pid}
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=120)[0].strip() == str(second.pid)
    assert begun(tmp_path) == {first.pid, second.pid}
