"""Clocks: records of several machines are put in order by their times, so these should agree."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from sqlalchemy import text

from infra import prefect_api
from infra.database.session import engine, translated
from infra.settings import SetupError, settings
from tasks.doctor.finding import Level

MOST = 5.0  # seconds; a Date header has whole ones
MEND = "timedatectl set-ntp true"


def check() -> Iterator[tuple[Level, str, str]]:
    seen = 0
    for name, offset in offsets():
        seen += 1
        if abs(offset) > MOST:
            way = "ahead of" if offset > 0 else "behind"
            yield "wrong", f"the clock of {name} is {abs(offset):.0f} s {way} this machine's", f"{MEND}  (on both)"
    if not seen:
        yield "ok", "no other machine's clock is asked: everything is here", ""
    else:
        yield "ok", f"{seen} compared with this machine's, {MOST:.0f} s apart at most allowed", ""


def offsets() -> Iterator[tuple[str, float]]:
    """By name, how many seconds the clock of each server is ahead of ours; those that do not answer are not there."""
    url = settings().database_url
    if not url.startswith("sqlite"):
        opened = engine(url)
        try:
            with translated(url), opened.connect() as connection:
                before = datetime.now(UTC)
                theirs = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
                yield "PostgreSQL", (theirs - before - (datetime.now(UTC) - before) / 2).total_seconds()
        except SetupError:
            pass
        finally:
            opened.dispose()
    servers = {
        "Prefect": prefect_api.address(),
        "MLflow": settings().mlflow_uri,
        "the engines' server": settings().server,
    }
    for name, address in servers.items():
        if address and address.startswith("http"):
            try:
                before = datetime.now(UTC)
                said = httpx.get(address, timeout=3).headers.get("date")
                if said:
                    there = parsedate_to_datetime(said).replace(tzinfo=UTC)  # always GMT, which some call -0000
                    yield name, (there - before.replace(microsecond=0)).total_seconds()
            except (httpx.HTTPError, ValueError):
                continue
