"""Training in several processes: torchrun as a child in a session of its own, for as long as we live.

The first process writes its events as JSON lines, which become progress, the report or the error; every other line goes
to the log "flywheel.training" and to `train.log` of the work folder. What torchrun started has sessions of its own, and
ends with its standard input, a pipe from here: where this process is cancelled, and also where it is killed. torchrun
itself then gets SIGTERM, and SIGKILL if it does not hear that.

On several machines `FLYWHEEL_TORCHRUN="--nnodes 2 ..."` starts the first; the log says what to start on the others,
which need the same FLYWHEEL_HOME and database.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import SetupError, settings

if TYPE_CHECKING:
    from tasks.students.causal import Causal

Progress = Callable[[int, int, str], None]
LOG = logging.getLogger("flywheel.training")
GRACE = 3.0  # seconds from SIGTERM to SIGKILL
EVENT = '{"event": '


def fit(spec: "Causal", dataset_id: str, work: Path, progress: Progress | None) -> dict[str, Any]:
    """`spec.fit` in the processes that FLYWHEEL_TORCHRUN asks for; returns its report.

    Raises:
        SetupError: One of them failed: its error, or the end of the log.
    """
    job = work / "job.json"
    job.write_text(json.dumps({"student": asdict(spec), "dataset_id": dataset_id, "work": str(work)}))
    asked = shlex.split(settings().torchrun)
    program = ["-m", "tasks.training.launch", str(job)]
    if any("nnodes" in word for word in asked):
        LOG.info("on each other machine: torchrun %s", shlex.join([*asked, *program]))
    else:
        asked = ["--standalone", *asked]
    command = [sys.executable, "-m", "torch.distributed.run", *asked, *program, "attended"]
    report: dict[str, Any] | None = None
    errors: list[dict[str, Any]] = []
    with (work / "train.log").open("a") as log, running(command) as process:
        tail: deque[str] = deque(maxlen=8)
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(EVENT):
                log.write(line)
                log.flush()
                LOG.info(line.rstrip())
                tail.append(line.strip())
                continue
            event = json.loads(line)
            if event["event"] == "progress" and progress:
                progress(*event["of"])
            elif event["event"] == "report":
                report = event["of"]
            elif event["event"] == "error":
                errors.append(event)
        code = process.wait()
    if any(event["setup"] for event in errors):
        raise SetupError(next(event["of"] for event in errors if event["setup"]))
    if code or report is None:
        said = errors[0]["of"] if errors else " | ".join(tail) or "no word"
        raise SetupError(f"`{shlex.join(['torchrun', *asked])}` ended with exit code {code}: {said}; see {log.name}")
    return report


@contextmanager
def running(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A child in a session of its own with pipes to its input and from its output, gone when this is left."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # what torchrun started ends at once
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def main(job: str, attended: bool) -> None:
    """One of torchrun's processes."""
    if attended:  # before the imports, which take seconds: it may be over by then
        threading.Thread(target=end_with_input, daemon=True).start()
    from accelerate import PartialState
    from pydantic import TypeAdapter

    from tasks.dataset.frozen import load
    from tasks.students import Causal

    asked = json.loads(Path(job).read_text())
    spec: Causal = TypeAdapter(Causal).validate_python(asked["student"])
    try:
        report = spec.fit(load(asked["dataset_id"]), Path(asked["work"]), lambda *of: tell("progress", of))
    except Exception as problem:
        said = str(problem) if isinstance(problem, SetupError) else f"{type(problem).__name__}: {problem}"
        tell("error", said, setup=isinstance(problem, SetupError))
        raise
    if int(os.environ["RANK"]) == 0:
        tell("report", report)
    PartialState().destroy_process_group()


def tell(event: str, of: Any, **more: Any) -> None:
    print(json.dumps({"event": event, "of": of, **more}), flush=True)


def end_with_input() -> None:
    """End this process when its standard input ends: what holds the other end of the pipe has died."""
    while os.read(0, 1024):  # not sys.stdin: Python could not shut down while a thread reads that
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], "attended" in sys.argv[2:])
