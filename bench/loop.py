"""One turn of the wheel at the simulated shop: seconds and share of each stage.

    python bench/loop.py [conversations]

Stages are called without Prefect, on a fresh home that is removed afterwards. Seconds depend on the machine and on
what else it does; the shares tell where the time goes.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def main(conversations: int) -> None:
    from flows.demo import open_shop
    from infra.seedling.simulate import WORKLOAD
    from tasks import curate, distill, evaluate, quantize, redeploy, release
    from tasks.students import Causal

    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], T]) -> T:
        started = time.monotonic()
        result = stage()
        seconds[name] = time.monotonic() - started
        return result

    timed("traffic", lambda: asyncio.run(open_shop(1, conversations)))
    dataset = timed("curate", lambda: curate.curate(WORKLOAD, curate.CurateSpec()))["dataset_id"]
    student = timed("distill", lambda: distill.distill(dataset, Causal()))["student_id"]
    made = [
        timed(f"quantize {spec.title}", lambda spec=spec: quantize.quantize(student, spec))["candidate_id"]
        for spec in quantize.CANDIDATES
    ]
    timed("evaluate teacher", lambda: evaluate.evaluate_teacher(dataset, evaluate.EvaluateSpec()))
    for candidate in made:
        timed(
            f"evaluate {candidate[:8]}",
            lambda c=candidate: evaluate.evaluate_candidate(dataset, c, evaluate.EvaluateSpec()),
        )
    outcome = timed("release", lambda: release.release(dataset, release.GateSpec()))["outcome"]
    if outcome == "promote":
        timed("redeploy", lambda: redeploy.redeploy(WORKLOAD))
    total = sum(seconds.values())
    for name, spent in seconds.items():
        print(f"{name:<28} {spent:7.1f} s  {spent / total:6.1%}")
    print(f"{'total':<28} {total:7.1f} s  ({conversations} conversations, verdict: {outcome})")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from flows.__main__ import quiet_environment

    with tempfile.TemporaryDirectory() as home:
        os.environ["FLYWHEEL_HOME"] = home
        quiet_environment()
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2400)
