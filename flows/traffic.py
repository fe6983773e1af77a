"""What is in the database, as tables in the terminal and on the page of an ingest's run."""

import io
import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from prefect.artifacts import create_image_artifact, create_table_artifact
from pydantic import Field

import tasks.traffic
from flows.stage import stage

if TYPE_CHECKING:
    from rich.table import Table

traffic_stage = stage(tasks.traffic.traffic)
BARS = "▁▂▃▄▅▆▇█"
OPINIONS = {
    "any": "any", "thumb up": "up", "thumb down": "down", "correction": "corrected", "rating": "rated",
    "preference": "preferred", "label": "labelled",
}  # fmt: skip


@flow(name="traffic")
def traffic(
    workload: Annotated[str | None, Field(description="Only this one; default: all")] = None,
    days: Annotated[int, Field(ge=1, le=3660, description="The latest days (UTC) that have traffic")] = 30,
    prompt_price: Annotated[float | None, Field(ge=0, description="USD per million prompt tokens")] = None,
    completion_price: Annotated[float | None, Field(ge=0, description="USD per million completion tokens")] = None,
) -> dict[str, Any]:
    """Show what is in the database: workloads, days, models, tokens and their cost, feedback, quarantine, sources.

    Args:
        workload: Only this one; without it all.
        days: The latest days (UTC) that have traffic.
        prompt_price: USD per million prompt tokens.
        completion_price: USD per million completion tokens.
    """
    return traffic_stage(workload, days, prompt_price, completion_price)


def publish() -> None:
    """Leave the traffic as a table and a plot on the page of the run that this is called in."""
    from tasks.report.workloads import picture

    found = traffic_stage()
    create_table_artifact(page_rows(found), key="traffic", description="Traffic by workload")
    create_image_artifact(
        picture(found), key="traffic-per-day", description="Interactions a day by workload; the line: thumbs down"
    )


def page_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row a workload, for Prefect's page."""
    return [
        {
            "workload": row["workload"], "interactions": f"{row['interactions']:,}",
            "from": row["first"][:10], "to": row["last"][:10], "models": str(len(row["models"])),
            "prompt tokens": short(row["tokens"]["prompt"]), "completion tokens": short(row["tokens"]["completion"]),
            "any feedback": share(row, "any"), "thumbs down": share(row, "thumb down"),
            "corrected": share(row, "correction"), "near duplicates": percent(row["sample"]["near_duplicates"]),
            "p95 latency": seconds(row["sample"]["latency_p95_ms"]),
        }
        for row in found["workloads"]
    ]  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """The tables; as wide as the terminal, or 80 columns, in colours only where they show."""
    from rich.console import Console

    if not found["workloads"] and not found["quarantined"]:
        return "There is no traffic yet: read some with `flywheel ingest jsonl PATH`, or send it through the gateway."
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    console = Console(
        file=io.StringIO(), width=max(60, min(width, 120)), force_terminal=sys.stdout.isatty(),
        no_color="NO_COLOR" in os.environ, legacy_windows=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    parts = [volume, tokens, opinions, answers, models] if found["workloads"] else []
    for part in (*parts, *([quarantine] if found["quarantine"] else []), *([sources] if found["sources"] else [])):
        shown = part(found, console.width)
        console.print(shown.title, style="bold")  # the table would wrap it at its own width
        shown.title = None
        console.print(shown)
    for line in closing(found):
        console.print(line, soft_wrap=False)
    file: Any = console.file
    return "\n".join(line.rstrip() for line in str(file.getvalue()).rstrip().splitlines())


def table(title: str, *columns: str, left: int = 1) -> "Table":
    """A table whose first `left` columns are text and the others numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n, name in enumerate(columns):
        made.add_column(name, justify="left" if n < left else "right", no_wrap=n >= left, overflow="fold")
    return made


def volume(found: dict[str, Any], room: int) -> "Table":
    """A row a workload; the bars show the latest days, as many as there is room for."""
    days = found["days"]
    drawn = days[-max(14, min(30, room - 66)) :]
    title = f"Traffic ({len(days)} days with traffic, {days[0]} to {days[-1]}, UTC)"
    shown = table(title, "workload", f"latest {len(drawn)}", "in these", "in all", "until", left=2)
    for row in found["workloads"]:
        shown.add_row(
            row["workload"], bars([row["per_day"].get(day, 0) for day in drawn]), f"{row['recent']:,}",
            f"{row['interactions']:,}", row["last"][:10],
        )  # fmt: skip
    return shown


def tokens(found: dict[str, Any], room: int) -> "Table":
    prices = found["price"] and f" at {dollars(found['price']['prompt'])} and {dollars(found['price']['completion'])}"
    title = f"Tokens{f'{prices} per million, students free' if prices else ''}"
    shown = table(title, "workload", "prompt", "completion", "known of", *(("cost",) if prices else ()))
    for row in found["workloads"]:
        counts, cost = row["tokens"], "–" if row["cost"] is None else dollars(row["cost"])
        known = percent(counts["completion_known"] / row["recent"]) if row["recent"] else "–"
        sums = [short(counts[side]) if counts[f"{side}_known"] else "–" for side in ("prompt", "completion")]
        shown.add_row(row["workload"], *sums, known, *((cost,) if prices else ()))
    return shown


def opinions(found: dict[str, Any], room: int) -> "Table":
    kinds = [kind for kind in OPINIONS if kind == "any" or any(kind in row["feedback"] for row in found["workloads"])]
    shown = table("Feedback (share of the interactions)", "workload", *(OPINIONS[kind] for kind in kinds))
    for row in found["workloads"]:
        shown.add_row(row["workload"], *(share(row, kind) for kind in kinds))
    return shown


def answers(found: dict[str, Any], room: int) -> "Table":
    size = tasks.traffic.SAMPLE
    shown = table(
        f"Answers (a sample: the latest {size:,} of each workload)",
        "workload", "sample", "mean", "p95", "errors", "cut off", "near dupl.",
    )  # fmt: skip
    for row in found["workloads"]:
        some = row["sample"]
        shown.add_row(
            row["workload"], f"{some['interactions']:,}", seconds(some["latency_mean_ms"]),
            seconds(some["latency_p95_ms"]), *(percent(some[key]) for key in ("errors", "cut_off", "near_duplicates")),
        )  # fmt: skip
    return shown


def models(found: dict[str, Any], room: int) -> "Table":
    shown = table("Models that answered", "workload", "model", "share", left=2)
    for row in found["workloads"]:
        for n, model in enumerate(row["models"][:5]):
            shown.add_row("" if n else row["workload"], model["model"], percent(model["share"]))
        if more := row["models"][5:]:
            shown.add_row("", f"{len(more)} more", percent(sum(model["share"] for model in more)))
    return shown


def quarantine(found: dict[str, Any], room: int) -> "Table":
    shown = table(f"Quarantine ({found['quarantined']:,} records)", "because", "records", "for example")
    shown.columns[2].justify, shown.columns[2].no_wrap = "left", False
    for row in found["quarantine"]:
        shown.add_row(row["reason"], f"{row['records']:,}", row["example"])
    return shown


def sources(found: dict[str, Any], room: int) -> "Table":
    more = found["sources_known"] - len(found["sources"])
    shown = table(f"Sources{f' (the latest; {more:,} more)' if more else ''}", "read", "rows", "when (UTC)")
    for row in found["sources"]:
        rows = "" if row["rows"] is None else f"{row['rows']:,}"
        place, space = row["place"], room - 40
        end = place if len(place) <= space else f"…{place[1 - space :]}"  # of a path its end says most
        shown.add_row(f"{row['kind']} {end}", rows, row["moved"][:16].replace("T", " "))
    return shown


def closing(found: dict[str, Any]) -> list[str]:
    """The largest cost, and what is not known."""
    said, rows = [], found["workloads"]
    counted = {row["workload"]: row["tokens"]["prompt"] + row["tokens"]["completion"] for row in rows}
    if rows and rows[0]["cost"]:
        first, whole = rows[0], sum(row["cost"] or 0 for row in rows)
        part = percent(first["cost"] / whole)
        said.append(f"The largest cost: {first['workload']}, {dollars(first['cost'])}, {part} of {dollars(whole)}.")
    elif whole := sum(counted.values()):
        most = max(counted, key=lambda name: counted[name])
        said.append(
            f"The most tokens: {most}, {percent(counted[most] / whole)} of {short(whole)}. "
            "What they cost: give --prompt-price and --completion-price, in USD per million."
        )
    recent = sum(row["recent"] for row in rows)
    if unknown := sum(row["recent"] - row["tokens"]["completion_known"] for row in rows):
        said.append(
            f"Tokens are known of {recent - unknown:,} of {recent:,} interactions; the others are not in the sums."
        )
    if found["waiting"]:
        said.append(f"{found['waiting']:,} pieces of feedback wait for their interaction.")
    return said


def bars(counts: list[int]) -> str:
    top = max(counts, default=0)
    return "".join(BARS[max(0, -(-8 * n // top) - 1)] if n else "·" for n in counts) if top else "·" * len(counts)


def share(row: dict[str, Any], kind: str) -> str:
    return percent(row["feedback"][kind]["share"]) if kind in row["feedback"] else "–"


def percent(part: float) -> str:
    return f"{100 * part:.1f} %" if 0 < part < 0.995 else f"{100 * part:.0f} %"


def seconds(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds / 1000:.2f} s"


def dollars(amount: float) -> str:
    return f"${amount:,.2f}"


def short(n: float) -> str:
    for unit in ("", " k", " M", " G"):
        if n < 1000:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:,.0f} T"
