"""What is in the database: workloads, days, models, tokens, feedback, costs, quarantine, and how far sources are read.

Counts and sums are made by the database, over the unique index on external ids and the one on (workload, at, id): no
row comes here but a sample, the latest of each workload, which what has to be read is estimated on (latency, errors,
near duplicates). Workloads and days are found by a loose index scan: the next one after the last, as often as there are
any, where DISTINCT would walk through every row (PostgreSQL wiki, "Loose indexscan").
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, case, cast, distinct, func, select
from sqlalchemy.orm import Session

from infra.database.session import session
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine
from infra.prefix import Prefix
from infra.registry import is_student
from infra.settings import SetupError
from tasks.ingest import workloads_of

Progress = Callable[[int, int, str], None]
SAMPLE = 2000
NEAR = 0.7  # as `curate` has it
MANY = 12  # reasons, sources
VARIABLE = r"'[^']*'|\"[^\"]*\"|[0-9]+"


def traffic(
    workload: str | None = None,
    days: int = 30,
    prompt_price: float | None = None,
    completion_price: float | None = None,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """What there is of a workload, or of all.

    Args:
        days: The latest days (UTC) with traffic of any of them, which all but the totals is counted over.
        prompt_price, completion_price: USD per million tokens, of the models that are paid for; students of ours are
            not among these. Without them tokens are counted and not priced.

    Returns:
        `days`; `workloads`, that with the largest cost first, each with its totals, `per_day`, `models`, `tokens`,
        `cost`, `feedback` and `sample`; `waiting`, feedback whose interaction has not come; `quarantine` and `sources`.

    Raises:
        SetupError: The workload has no traffic, or one of the two prices is missing.
    """
    price = None
    if prompt_price is not None and completion_price is not None:
        price = {"prompt": prompt_price, "completion": completion_price}
    elif prompt_price is not None or completion_price is not None:
        raise SetupError("a cost needs both prices; give prompt_price and completion_price, USD per million tokens")
    with session(write=False) as db:
        known = list(workloads_of(db))
        if workload is not None and workload not in known:
            raise SetupError(f"workload {workload!r} has no traffic; known are {', '.join(known[:20]) or 'none yet'}")
        names = [workload] if workload is not None else known
        window = latest_days(db, names, days)
        start = datetime.fromisoformat(window[0]).replace(tzinfo=UTC) if window else datetime.max.replace(tzinfo=UTC)
        said = opinions(db, start) if names else {}
        found = []
        for n, name in enumerate(names):
            found.append(portrait(db, name, start, said.get(name, {"kinds": {}, "down": {}}), price))
            if progress:
                progress(n + 1, len(names), "traffic")
        return {
            "days": window,
            "workloads": sorted(found, key=_dearness),
            "price": price,
            "waiting": waiting(db),
            **quarantined(db),
            **sources(db),
        }


def _dearness(row: dict[str, Any]) -> tuple[float, int, int, str]:
    tokens = row["tokens"]
    return (-(row["cost"] or 0.0), -tokens["prompt"] - tokens["completion"], -row["interactions"], row["workload"])


def latest_days(db: Session, names: list[str], days: int) -> list[str]:
    """The latest days on which any of the workloads has traffic, as ISO dates, the earliest first."""
    latest = select(func.max(Interaction.at))
    reached = {name: db.scalar(latest.where(Interaction.workload == name)) for name in names}
    found: list[str] = []
    while len(found) < days and (known := [at for at in reached.values() if at is not None]):
        midnight = max(known).replace(hour=0, minute=0, second=0, microsecond=0)
        found.append(midnight.date().isoformat())
        for name, at in reached.items():
            if at is not None and at >= midnight:
                reached[name] = db.scalar(latest.where(Interaction.workload == name, Interaction.at < midnight))
    return found[::-1]


def portrait(
    db: Session, name: str, start: datetime, said: dict[str, Any], price: dict[str, float] | None
) -> dict[str, Any]:
    """What there is of one workload from `start` on, with its totals."""
    mine = Interaction.workload == name
    total, first, last = db.execute(
        select(func.count(), func.min(Interaction.at), func.max(Interaction.at)).where(mine)
    ).one()
    sums = [Interaction.prompt_tokens, Interaction.completion_tokens]
    day = _day(db)
    rows = db.execute(
        select(day, Interaction.model, func.count(), *(f(c) for c in sums for f in (func.sum, func.count)))
        .where(mine, Interaction.at >= start)
        .group_by(day, Interaction.model)
    ).all()
    per_day: Counter[str] = Counter()
    models: Counter[str] = Counter()
    tokens: Counter[str] = Counter(prompt=0, completion=0, prompt_known=0, completion_known=0)
    paid = 0.0
    for date, model, n, prompt, prompt_known, completion, completion_known in rows:
        per_day[str(date)] += n
        models[model or "not named"] += n
        counted = {"prompt": int(prompt or 0), "completion": int(completion or 0)}
        tokens.update(counted, prompt_known=prompt_known, completion_known=completion_known)
        if price and not is_student(model):
            paid += sum(price[side] * counted[side] for side in price) / 1e6
    recent = per_day.total()
    return {
        "workload": name,
        "interactions": total,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "recent": recent,
        "per_day": dict(sorted(per_day.items())),
        "models": [{"model": m, "interactions": n, "share": n / recent} for m, n in models.most_common()],
        "tokens": dict(tokens),
        "cost": paid if price and tokens["prompt_known"] + tokens["completion_known"] else None,
        "feedback": {what: {"interactions": n, "share": n / recent} for what, n in said["kinds"].items()},
        "down_per_day": said["down"],
        "sample": sample(db, name),
    }


def _day(db: Session) -> ColumnElement[Any]:
    at = Interaction.at
    return func.date(at) if db.get_bind().dialect.name == "sqlite" else func.date(func.timezone("UTC", at))


def opinions(db: Session, start: datetime) -> dict[str, dict[str, Any]]:
    """By workload: how many interactions from `start` on had any feedback, each kind of it, and thumbs down by day.

    What is said of a whole conversation names none of its interactions, and is not among it.
    """
    value = cast(Feedback.value, Text)  # as `jsontext.to_column` wrote it: -1, or {"value":-1,...}
    down = and_(Feedback.kind == "thumb", value.like("-1%") | value.like('{"value":-1%'))
    kind = case((down, "thumb down"), (Feedback.kind == "thumb", "thumb up"), else_=Feedback.kind)
    joined = select(Interaction.workload).join(Feedback, Feedback.record_id == Interaction.external_id)
    joined = joined.where(Interaction.at >= start).group_by(Interaction.workload)
    number = func.count(distinct(Interaction.id))
    found = {name: {"kinds": {"any": n}, "down": {}} for name, n in db.execute(joined.add_columns(number))}
    for name, what, n in db.execute(joined.add_columns(kind, number).group_by(kind)):
        found[name]["kinds"][what] = n
    day = _day(db)
    for name, date, n in db.execute(joined.add_columns(day, number).where(down).group_by(day)):
        found[name]["down"][str(date)] = n
    return found


def waiting(db: Session) -> int:
    """Feedback on an interaction that has not come."""
    there = select(Interaction.id).where(Interaction.external_id == Feedback.record_id).exists()
    whole = cast(Feedback.value, Text).like('{"value":%"target":%')
    return db.scalar(select(func.count()).select_from(Feedback).where(~there, ~whole)) or 0


def sample(db: Session, name: str) -> dict[str, Any]:
    """What the latest interactions of a workload say of themselves: latency, failures, near duplicates."""
    from tasks.curate import asked
    from tasks.dataset.similarity import clusters

    rows = db.execute(
        select(Interaction.request, Interaction.response, Interaction.latency_ms)
        .where(Interaction.workload == name)
        .order_by(Interaction.at.desc(), Interaction.id.desc())
        .limit(SAMPLE)
    ).all()
    prefixes = [Prefix.of(request) for request, _, _ in rows]
    often = Counter(prefix.fingerprint for prefix in prefixes).most_common(1)[0][0]
    shared = next(prefix for prefix in prefixes if prefix.fingerprint == often)
    alike = clusters([asked(request, shared) for request, _, _ in rows], NEAR)
    times = sorted(latency for _, _, latency in rows if latency is not None)
    ends = Counter((response.get("choices") or [{}])[0].get("finish_reason") for _, response, _ in rows)
    return {
        "interactions": len(rows),
        "near_duplicates": 1 - len(set(alike)) / len(rows),
        "errors": sum(not response.get("choices") for _, response, _ in rows) / len(rows),
        "cut_off": (ends["length"] + ends["content_filter"]) / len(rows),
        "latency_known": len(times),
        "latency_mean_ms": sum(times) / len(times) if times else None,
        "latency_p95_ms": times[math.ceil(0.95 * len(times)) - 1] if times else None,
    }


def quarantined(db: Session) -> dict[str, Any]:
    """How much lies in quarantine, and the reasons, numbers and quoted words left out, the commonest first."""
    connection = db.connection()
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.create_function("regexp_replace", 4, lambda text, what, new, _: re.sub(what, new, text))
    shape = func.regexp_replace(Quarantine.reason, VARIABLE, "…", "g")
    groups = db.execute(
        select(shape, Quarantine.source, func.count().label("n"), func.min(Quarantine.id))
        .group_by(shape, Quarantine.source)
        .order_by(func.count().desc(), shape)
        .limit(MANY)
    ).all()
    there = select(Quarantine.id, Quarantine.position).where(Quarantine.id.in_([g[3] for g in groups]))
    places = {number: position for number, position in db.execute(there)}
    return {
        "quarantined": db.scalar(select(func.count()).select_from(Quarantine)) or 0,
        "quarantine": [
            {"reason": reason, "source": source, "records": n, "example": places[number]}
            for reason, source, n, number in groups
        ],
    }


def sources(db: Session) -> dict[str, Any]:
    """How far the sources that were read last have been read."""
    latest = db.scalars(select(Cursor).order_by(Cursor.moved.desc(), Cursor.source).limit(MANY)).all()
    return {
        "sources_known": db.scalar(select(func.count()).select_from(Cursor)) or 0,
        "sources": [
            {
                "kind": row.source.partition(":")[0], "place": row.position.get("path", row.source),
                "rows": row.position.get("rows"), "quarantined": row.position.get("quarantined", 0),
                "moved": row.moved.isoformat(),
            }
            for row in latest
        ],
    }  # fmt: skip
