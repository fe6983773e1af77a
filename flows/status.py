"""One screen in the terminal: who serves, what the gate said, what is under way, what comes next, what is wrong."""

import io
import os
import shutil
import sys
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import tasks.status

SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


def status() -> dict[str, Any]:
    """Show workloads, champions and their age, last verdicts, rollouts, the gateway, the next run, and alerts."""
    return tasks.status.status()


def render(found: dict[str, Any]) -> str:
    """The screen, as wide as the terminal, or 80 columns; in colours only where they show."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tty = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(), width=max(60, min(shutil.get_terminal_size().columns if tty else 80, 120)),
        force_terminal=tty, no_color="NO_COLOR" in os.environ, legacy_windows=False, highlight=False, markup=False,
        emoji=False,
    )  # fmt: skip
    if not found["workloads"]:
        console.print(f"Nothing is in {found['home']} yet. Next:", soft_wrap=True)
        for command, what in BEGINNINGS:
            console.print(f"  {command:<28} {what}")
    else:
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("workload", "traffic", "champion", "since", "last verdicts"):
            shown.add_column(name, overflow="fold", justify="right" if name == "traffic" else "left")
        for row in found["workloads"]:
            shown.add_row(row["workload"], f"{row['interactions']:,}", *champion(row), verdicts(row))
        console.print(shown)
        for row in found["workloads"]:
            if moving := row["rollout"]:
                console.print(f"rollout   {row['workload']}: {rollout(moving)}")
    console.print(f"gateway   {gateway(found['gateway'])}")
    console.print(f"next run  {coming(found['schedule'])}")
    for run in found["schedule"].get("failed", ()):
        console.print(Text(f"failed    {run['name']}: {run['state']}; its page in Prefect has the log", style="red"))
    if found["workloads"] and not found["alerts"]:
        console.print("alerts    none")
    for alert in found["alerts"]:
        whose = f"{alert['workload']}: " if alert["workload"] and alert["workload"] not in alert["said"] else ""
        console.print(Text(f"ALERT     {whose}{alert['said']}", style="yellow"))
        if alert["mend"]:
            console.print(f"          {alert['mend']}")
    file: Any = console.file
    return "\n".join(line.rstrip() for line in str(file.getvalue()).strip("\n").splitlines())


BEGINNINGS = (
    ("flywheel ingest jsonl PATH", "read a log of requests and answers"),
    ("flywheel up", "put the gateway before the model you pay for"),
    ("flywheel demo", "see the wheel turn at a simulated shop"),
)


def champion(row: dict[str, Any]) -> tuple[str, str]:
    """Who serves, and for how long."""
    serves = row["champion"]
    if serves is None:
        return "the teacher", ""
    return f"version {serves['version']}", f"{span(serves['age_seconds'])} ({serves['by']})"


def verdicts(row: dict[str, Any]) -> str:
    """The latest of them, the newest first, and when that was."""
    if not row["verdicts"]:
        return "none yet"
    at = datetime.fromisoformat(row["verdicts"][0]["at"])
    said = [(outcome, len(list(some))) for outcome, some in groupby(v["outcome"] for v in row["verdicts"])]
    return f"{', '.join(f'{outcome} ×{n}' if n > 1 else outcome for outcome, n in said)}, {ago(at)}"


def rollout(moving: dict[str, Any]) -> str:
    """Where a version on its way stands."""
    against = "the teacher" if moving["reference"] == "teacher" else f"version {moving['reference']}"
    share = f"{moving['weight']:.0%} of conversations" if moving["weight"] else "shadow"
    since = ago(datetime.fromisoformat(moving["since"]))
    step = f"step {moving['step']} of {moving['steps']} ({share}, since {since})"
    return f"version {moving['version']} against {against}, {step}"


def gateway(says: dict[str, Any]) -> str:
    """Whether it is up, and what it serves."""
    if not says["up"]:
        return f"{says['url']}: {says['said']}; `flywheel up` starts it"
    serves = [f"{name} version {one['version']} ({one['engine']})" for name, one in says["serves"].items()]
    return f"{says['url']} is up and serves {', '.join(serves) or 'the teacher alone'}"


def coming(schedule: dict[str, Any]) -> str:
    """When the wheel turns next."""
    if "next" not in schedule:
        return str(schedule["said"])
    at = datetime.fromisoformat(schedule["next"]).astimezone(UTC)
    return f"{schedule['name']} at {at:%Y-%m-%d %H:%M} UTC, in {span((at - datetime.now(UTC)).total_seconds())}"


def ago(at: datetime) -> str:
    return f"{span((datetime.now(UTC) - at).total_seconds())} ago"


def span(seconds: float) -> str:
    """A length of time in its largest unit: 3 d, 5 h, 12 min."""
    for unit, name in SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"
