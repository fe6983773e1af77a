"""Prefect: its server, our deployments there, somebody who runs them, and runs that are late."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from infra import prefect_api
from tasks.doctor.finding import Level

LATE = timedelta(minutes=5)


def check() -> Iterator[tuple[Level, str, str]]:
    url = prefect_api.address()
    if url is None:
        yield "ok", "no server is configured: commands run by themselves, and nothing runs at night", "flywheel up"
        return
    theirs, ours = prefect_api.response("/admin/version").json(), version("prefect")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        yield (
            "warning",
            f"the server at {prefect_api.shown(url)} is {theirs}, this is {ours}",
            f"pip install prefect=={theirs}",
        )
    else:
        yield "ok", f"server {theirs} at {prefect_api.shown(url)}", ""
    deployed = prefect_api.deployments()
    if not deployed:
        yield "wrong", "none of our deployments is there, so nothing runs by schedule or button", "flywheel up"
        return
    idle = sorted(one["name"] for one in deployed if one["status"] != "READY")
    if idle:
        pools = sorted({one["work_pool_name"] for one in deployed if one["name"] in idle and one["work_pool_name"]})
        mend = "; ".join(f"prefect worker start --pool {pool}" for pool in pools) or "flywheel up"
        yield "wrong", f"nobody runs {len(idle)} of {len(deployed)} deployments ({', '.join(idle[:3])})", mend
    else:
        yield "ok", f"{len(deployed)} deployments, each with somebody who runs it", ""
    for run in prefect_api.runs("SCHEDULED", "NEXT_SCHEDULED_START_TIME_ASC"):
        due = datetime.fromisoformat(run["next_scheduled_start_time"] or run["expected_start_time"])
        if run["state_name"] == "Late" or datetime.now(UTC) - due > LATE:
            yield "warning", f"run {run['name']} was due at {due:%Y-%m-%d %H:%M} and has not begun", "flywheel up"
