"""What is older than a date, deleted."""

from datetime import date
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

import tasks.retention
from flows.stage import stage

prune_stage = stage(tasks.retention.prune)


@flow(name="prune", flow_run_name="prune-{before}")
def prune(
    before: Annotated[date, Field(description="The first day (UTC) that is kept: 2026-01-01")],
    workload: Annotated[str | None, Field(description="Only this one; default: all")] = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Delete interactions and feedback from before a day, and what was in quarantine then; datasets keep theirs.

    Files that have been read are not read again, so that what is deleted does not come back. --dry-run only says what
    would be deleted.

    Args:
        before: The first day (UTC) that is kept, as in 2026-01-01.
        workload: Only this one; without it all.
        dry_run: Only say what would be deleted.
    """
    return prune_stage(before, workload, dry_run)


def render(found: dict[str, Any]) -> str:
    """What went, what was kept, and why."""
    said = [f"{'Would delete' if found['dry_run'] else 'Deleted'}, from before {found['before']}:"]
    said += [f"{n:>12,} interactions of {name}" for name, n in found["interactions"].items()]
    for key, what in {
        "feedback": "pieces of feedback on them", "orphans": "pieces of feedback whose interaction never came",
        "quarantine": "records in quarantine",
    }.items():  # fmt: skip
        said.append(f"{found[key]:>12,} {what}")
    if found["kept"]:
        said.append("Kept, for a dataset was made of them (`flywheel forget` erases these, too):")
        said += [
            f"{d['interactions']:>12,} interactions in {d['dataset_id']} of {d['workload']}" for d in found["kept"]
        ]
    if found["read_again"]:
        said += [
            f"Sources with records in quarantine: {found['read_again']:,}. The next ingest reads them from their",
            "start, and what is old in them comes back until the next prune.",
        ]
    return "\n".join(said)
