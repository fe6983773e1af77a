"""Where everything stands, from the database and from what answers: quick, and without MLflow or Prefect imported."""

from datetime import datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra import prefect_api, promotions
from infra.backup.copies import file_of
from infra.database.session import hidden, session
from infra.database.tables import Dataset, Interaction, Promotion, Quarantine, Rollout, RolloutDecision, Verdict, now
from infra.gateway import spool
from infra.rollout.state import ROLLED_BACK
from infra.servers import running
from infra.settings import SetupError, settings
from tasks.ingest import workloads_of
from tasks.signals import signals

SECONDS = 1.0  # that a server may take to answer
VERDICTS = 3
LATELY = timedelta(days=7)
STALE = timedelta(days=30)
UNFINISHED = timedelta(hours=12)  # that a turn may take from its dataset to its verdict
QUARANTINED = 0.01  # share of a day's records


def status() -> dict[str, Any]:
    """Workloads with champion, verdicts and rollout; the servers; the next run; alerts."""
    gateway = gateway_says()
    found: dict[str, Any] = {
        "home": str(settings().home), "database": hidden(settings().database_url), "at": now().isoformat(),
        "workloads": [], "gateway": gateway, "schedule": schedule(), "alerts": [],
    }  # fmt: skip
    file = file_of(settings().database_url)
    if file is not None and not file.exists():
        return found
    with session(write=False) as db:
        names = workloads(db)
        found["workloads"] = [workload_says(db, name) for name in names]
    found["alerts"] = [alert for name in (None, *names) for alert in alerts(name)] + gateway_alerts(gateway)
    return found


def workloads(db: Session) -> list[str]:
    """Every workload that has traffic, a dataset or a champion."""
    others = (Dataset.workload, Promotion.workload)
    return sorted({*workloads_of(db), *(name for column in others for name in db.scalars(select(column).distinct()))})


def workload_says(db: Session, name: str) -> dict[str, Any]:
    """One workload: its traffic, who serves, what the gate said last, what is under way."""
    count, latest = db.execute(select(func.count(), func.max(Interaction.at)).where(Interaction.workload == name)).one()
    verdicts = db.scalars(
        select(Verdict).where(Verdict.workload == name).order_by(Verdict.created.desc()).limit(VERDICTS)
    )
    return {
        "workload": name, "interactions": count, "latest": latest and latest.isoformat(),
        "champion": champion(serving(db, name)),
        "verdicts": [
            {"id": row.id, "outcome": row.outcome, "at": row.created.isoformat(), "version": row.model_version}
            for row in verdicts
        ],
        "rollout": rollout(db, name),
    }  # fmt: skip


def serving(db: Session, name: str) -> Promotion | None:
    """The move that let serve what serves."""
    moves = select(Promotion).where(Promotion.workload == name, Promotion.at.is_not(None))
    return db.scalar(moves.order_by(Promotion.at.desc(), Promotion.number.desc()).limit(1))


def champion(row: Promotion | None) -> dict[str, Any] | None:
    """Which version serves, since when, and by whose doing; None where the teacher does."""
    if row is None or row.version is None or row.at is None:
        return None
    return {
        "version": row.version, "since": row.at.isoformat(), "age_seconds": (now() - row.at).total_seconds(),
        "by": row.by, "gated": row.verdict_id is not None, "replaced": row.replaced,
    }  # fmt: skip


def rollout(db: Session, name: str) -> dict[str, Any] | None:
    """What is under way, and what was decided of it last."""
    row = db.scalar(select(Rollout).where(Rollout.workload == name, Rollout.ended.is_(None)))
    if row is None:
        return None
    steps = row.spec["steps"]
    return {
        "version": row.version, "reference": row.reference, "step": min(row.step + 1, len(steps)), "steps": len(steps),
        "weight": steps[row.step]["weight"] if row.step < len(steps) else 1.0, "since": row.step_began.isoformat(),
        "said": last_reason(db, row.id),
    }  # fmt: skip


def last_reason(db: Session, rollout_id: int) -> str:
    said = select(RolloutDecision.reason).where(RolloutDecision.rollout_id == rollout_id)
    return db.scalar(said.order_by(RolloutDecision.id.desc()).limit(1)) or ""


# -- alerts --------------------------------------------------------------------------------------------------------


def alert(workload: str | None, name: str, said: str, mend: str = "") -> dict[str, Any]:
    """Something that a person should know: one sentence, and the command that shows more or mends it."""
    return {"workload": workload, "name": name, "said": said, "mend": mend}


def alerts(workload: str | None) -> list[dict[str, Any]]:
    """What a person should know of a workload, or (None) of the home as a whole, as far as the database says it."""
    with session(write=False) as db:
        if workload is None:
            return [*waiting(), *quarantined(db)]
        found = [*undone(db, workload), *ungated(db, workload), *stale(db, workload), *unfinished(db, workload)]
    turn = f"flywheel run --workload {workload}"
    return [*found, *(alert(workload, one["name"], one["said"], turn) for one in signals(workload) if one["fired"])]


def waiting() -> list[dict[str, Any]]:
    """Records that the database has not taken."""
    files = spool.files(spool.folder())
    if not files:
        return []
    size = sum(map(spool.size_of, files))
    said = f"{size:,} bytes wait in the spool for the database, the oldest since {files[0].stem}"
    return [alert(None, "spool", said, "flywheel ingest gateway")]


def quarantined(db: Session) -> list[dict[str, Any]]:
    """Records of the last day that could not be understood, where they are more than a few."""
    since = now() - timedelta(days=1)
    bad = db.scalar(select(func.count()).select_from(Quarantine).where(Quarantine.created >= since)) or 0
    if not bad:
        return []
    # Of a day's rows, the first that suffice to call these few: a table of millions is not counted.
    enough = int(bad / QUARANTINED)
    good = db.scalar(
        select(func.count()).select_from(
            select(Interaction.id).where(Interaction.created >= since).order_by(Interaction.id.desc()).limit(enough)
            .subquery()
        )
    ) or 0  # fmt: skip
    if good >= enough:
        return []
    return [alert(None, "quarantine", f"{bad:,} records went to quarantine in a day", "flywheel traffic")]


def undone(db: Session, workload: str) -> list[dict[str, Any]]:
    """A rollback, or a rollout that was undone, within the last days."""
    found, since = [], now() - LATELY
    move = serving(db, workload)
    if move is not None and move.at is not None and move.by == "rollback" and move.at >= since:
        said = f"version {move.replaced} was rolled back to {move.version} on {move.at:%Y-%m-%d}: {move.reason}"
        found.append(alert(workload, "rollback", said, f"flywheel redeploy --workload {workload}"))
    ended = select(Rollout).where(Rollout.workload == workload, Rollout.ended >= since)
    row = db.scalar(ended.order_by(Rollout.ended.desc()).limit(1))
    if row is not None and row.status == ROLLED_BACK:
        said = f"the rollout of version {row.version} was undone: {last_reason(db, row.id)}"
        found.append(alert(workload, "rollout", said, f"flywheel redeploy --workload {workload}"))
    return found


def ungated(db: Session, workload: str) -> list[dict[str, Any]]:
    """A champion that no verdict lets serve."""
    said = promotions.warning(serving(db, workload))
    if not said:
        return []
    return [alert(workload, "hand", said.partition("; `")[0], f"flywheel release --rollback --workload {workload}")]


def stale(db: Session, workload: str) -> list[dict[str, Any]]:
    """A champion that is old, while traffic goes on and no turn has judged anything since."""
    move = serving(db, workload)
    if move is None or move.version is None or move.at is None or now() - move.at < STALE:
        return []
    judged = db.scalar(select(func.max(Verdict.created)).where(Verdict.workload == workload))
    latest = db.scalar(select(func.max(Interaction.at)).where(Interaction.workload == workload))
    if (judged and now() - judged < STALE) or latest is None or latest < move.at:
        return []
    said = f"version {move.version} serves for {(now() - move.at).days} days, and nothing was held against it since"
    return [alert(workload, "stale", said, f"flywheel run --workload {workload}")]


def unfinished(db: Session, workload: str) -> list[dict[str, Any]]:
    """The last turn cut a dataset and came to no verdict."""
    newest = db.scalar(select(Dataset).where(Dataset.workload == workload).order_by(Dataset.created.desc()).limit(1))
    if newest is None or now() - newest.created < UNFINISHED:
        return []
    if db.scalar(select(Verdict.id).where(Verdict.dataset_id == newest.id).limit(1)) is not None:
        return []
    said = f"the turn of {newest.created:%Y-%m-%d %H:%M} cut dataset {newest.id[:16]} and came to no verdict"
    return [alert(workload, "turn", said, f"flywheel run --workload {workload}")]


# -- servers -------------------------------------------------------------------------------------------------------


def gateway_address() -> str:
    """Where the gateway is, as `flywheel up` says, else by the settings."""
    host = settings().host.replace("0.0.0.0", "127.0.0.1").replace("::", "[::1]")
    return running().get("gateway") or f"http://{host}:{settings().gateway_port}"


def gateway_says() -> dict[str, Any]:
    """Whether the gateway is up, and what it serves."""
    url = gateway_address()
    try:
        said = httpx.get(f"{url}/v1/models", timeout=SECONDS, trust_env=False)
        models: dict[str, Any] = said.json() if said.is_success else {}
        if not isinstance(models, dict) or "problems" not in models:
            return {"url": url, "up": False, "said": f"something else answers there ({said.status_code})"}
    except (httpx.HTTPError, ValueError) as problem:
        return {"url": url, "up": False, "said": f"nothing answers ({type(problem).__name__})"}
    served = {entry["id"]: {"version": entry["version"], "engine": entry["engine"]} for entry in models["data"]}
    return {"url": url, "up": True, "serves": served, "problems": models["problems"]}


def gateway_alerts(gateway: dict[str, Any]) -> list[dict[str, Any]]:
    """What the gateway should serve and does not."""
    problems: dict[str, str] = gateway.get("problems") or {}
    return [alert(workload, "gateway", said, "flywheel doctor") for workload, said in problems.items()]


def schedule() -> dict[str, Any]:
    """The next scheduled run and how the last one ended, or why that is not known."""
    if prefect_api.address() is None:
        return {"said": "no schedule: `flywheel up`"}
    try:
        coming = prefect_api.runs("SCHEDULED", "NEXT_SCHEDULED_START_TIME_ASC", 1)
        failed = [
            run for state in ("FAILED", "CRASHED") for run in prefect_api.runs(state, "EXPECTED_START_TIME_DESC", 1)
            if datetime.fromisoformat(run["expected_start_time"]) > now() - LATELY
        ]  # fmt: skip
    except (SetupError, ValueError, KeyError) as problem:
        return {"said": str(problem)}
    found: dict[str, Any] = {"failed": [{"name": run["name"], "state": run["state_name"]} for run in failed]}
    if not coming:
        return {**found, "said": "no run is scheduled: `flywheel up`, or a schedule in Prefect's UI"}
    names = {one["id"]: one["name"] for one in prefect_api.deployments()}
    name = names.get(coming[0]["deployment_id"], coming[0]["name"])
    return {**found, "next": coming[0]["next_scheduled_start_time"], "name": name}
