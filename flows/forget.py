"""A client or an interaction, erased."""

from typing import Annotated, Any

from pydantic import Field

import tasks.forget
from flows.stage import stage

forget_stage = stage(tasks.forget.forget)


def forget(
    client: Annotated[str | None, Field(description="Erase all interactions of this `client_id`")] = None,
    interaction: Annotated[str | None, Field(description="Erase this interaction, by the id that its log has")] = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Erase a client or an interaction from every table and file, and mark what was made of it.

    It does not come back when its log is read again. What cannot be erased is said at the end; --dry-run only says what
    would be erased. Let no `curate` run at the same time.
    """
    return forget_stage(client, interaction, dry_run)


def render(found: dict[str, Any]) -> str:
    """What was erased, what was marked, and what remains."""
    said = [f"{'Would forget' if found['dry_run'] else 'Forgot'} {found['forgot']} {found['id']!r}:"]
    for key, what in {
        "interactions": "interactions", "feedback": "pieces of feedback", "quarantine": "records in quarantine",
        "spool": "lines of the gateway's spool", "answers": "answers in scorecards",
        "reports": "reports, made again without it",
    }.items():  # fmt: skip
        said.append(f"  {found[key]:>8,} {what}")
    said += [f"  dataset {d['dataset_id']} of {d['workload']}: {d['forgotten']:,} rows" for d in found["datasets"]]
    said += [f"  version {v['version']} of {v['workload']} was trained on it" for v in found["versions"]]
    if not any(found[key] for key in ("interactions", "feedback", "quarantine", "spool")):
        said.append("Nothing of it is here; if a log brings it, it will not be stored." if not found["dry_run"] else "")
    return "\n".join([*filter(None, said), "What this cannot erase:", *(f"  {line}" for line in found["remains"])])
