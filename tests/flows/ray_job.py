"""What a stage is told on a Ray cluster, and what Ray shows of it: `python -m tests.flows.ray_job HEAD`."""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import task

from flows.cluster import fan_out
from infra.settings import settings

LISTS = ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers", "cluster_events")


@task
def told() -> dict[str, Any]:
    found = settings()
    return {
        "database": found.database, "key": found.teacher_key.get_secret_value(),
        "begun with": Path("/proc/self/environ").read_text(),
    }  # fmt: skip


def shown(address: str) -> dict[str, list[Any]]:
    """All that Ray's state API knows, in detail."""
    from ray.util import state

    return {
        name: getattr(state, f"list_{name}")(address=address, detail=True, raise_on_missing_output=False)
        for name in LISTS
    }


if __name__ == "__main__":
    (answer,) = fan_out(told, [()])
    print(json.dumps({"told": answer, "shown": shown(sys.argv[1])}, default=str))
