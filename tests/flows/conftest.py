"""A home in which the wheel has turned twice, by the command line, as a person would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.shop_log import WORKLOAD, write_log

ROOT = Path(__file__).parent.parent.parent
# A margin this wide promotes whatever was made: these tests are about the wheel, not about the student.
TURN = (
    "run",
    "--workload",
    WORKLOAD,
    "--distill.epochs",
    "12",
    "--distill.learning_rate",
    "0.004",
    "--gate.margin",
    "0.99",
    "--gate.min_holdout",
    "10",
)

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment_of(home: Path, **settings: str) -> dict[str, str]:
    """A fresh environment: this home, the given settings, and nothing that another flow run left behind."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLYWHEEL_", "PREFECT_", "MLFLOW_"))}
    return {**kept, "FLYWHEEL_HOME": str(home), "FLYWHEEL_TEACHER": "", "FLYWHEEL_THREADS": "1", **settings}


def flywheel(*arguments: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=400, env=environment_of(home, **settings),
    )  # fmt: skip


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The home, and what the two turns printed."""
    home = tmp_path_factory.mktemp("turned")
    results = []
    for day in (1, 2):
        log = write_log(tmp_path_factory.mktemp("log") / "day.jsonl", seed=day, conversations=110, day=day)
        source = json.dumps([str(log)])
        done = flywheel(*TURN, "--source.paths", source, "--json", home=home)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return home, results


from tests.flows.house import house, standing  # noqa: E402, F401 (fixtures, which need what is above)
