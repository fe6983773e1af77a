"""Traffic by day and workload, and thumbs down under it, for Prefect's page: an SVG that needs nothing around it."""

from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from tasks.report.page import HERE
from tasks.report.pen import Box, Picture, Scale, clipped

WIDE, ROW, NAMES, MOST = 760, 46, 170, 8


def picture(found: dict[str, Any]) -> str:
    """What `tasks.traffic.traffic` found as an SVG in a `data:` URI, which needs no server of files."""
    return f"data:image/svg+xml;charset=utf-8,{quote(svg(found))}"


def svg(found: dict[str, Any]) -> str:
    """A row a workload, the busiest first: bars by day, all rows to one measure, thumbs down below their line."""
    days, rows = found["days"], sorted(found["workloads"], key=lambda row: (-row["recent"], row["workload"]))
    shown = [(row["workload"], row["per_day"], row["down_per_day"], row["recent"]) for row in rows[:MOST]]
    if more := rows[MOST:]:
        summed = [
            {day: sum(row[key].get(day, 0) for row in more) for day in days} for key in ("per_day", "down_per_day")
        ]
        shown.append((f"{len(more)} others", *summed, sum(row["recent"] for row in more)))
    drawn = Picture(WIDE, 30 + ROW * max(1, len(shown)) + 22)
    drawn.box(0, 0, drawn.wide, drawn.tall, "paper")
    top = max((n for _, per_day, _, _ in shown for n in per_day.values()), default=0) or 1
    for n, (name, per_day, down, recent) in enumerate(shown):
        room = Box(NAMES, 26 + n * ROW, WIDE - 70, 26 + n * ROW + ROW - 14)
        drawn.text(8, room.bottom - 2, clipped(name, 24))
        drawn.text(WIDE - 8, room.bottom - 2, f"{recent:,}", "axis", "end")
        _bars(drawn, room, [per_day.get(day, 0) for day in days], [down.get(day, 0) for day in days], top)
    drawn.text(8, 15, f"interactions a day, at most {top:,}; below the line: thumbs down", "axis")
    if days:
        drawn.text(NAMES, drawn.tall - 6, days[0], "axis")
        drawn.text(WIDE - 70, drawn.tall - 6, days[-1] if len(days) > 1 else "", "axis", "end")
    style = (HERE / "style.css").read_text().replace(":root", "svg")
    head, rest = drawn.svg("Traffic by day and workload").split(">", 1)
    sized = Markup('{} width="{}" height="{:.0f}"><style>{}</style>').format(
        Markup(head), WIDE, drawn.tall, Markup(f"{style}.paper{{fill:var(--paper)}}text{{font-family:sans-serif}}")
    )
    return str(sized + Markup(rest))


def _bars(drawn: Picture, room: Box, counts: list[int], down: list[int], top: int) -> None:
    up = Scale(0, top, room.bottom - 6, room.top)
    step = (room.right - room.left) / max(1, len(counts))
    thick = min(28.0, max(1.0, step - 2))
    drawn.line(room.left, up(0), room.right, up(0), "zero")
    for i, (count, disliked) in enumerate(zip(counts, down, strict=True)):
        x = room.left + (i + 0.5) * step - thick / 2
        if count:
            drawn.box(x, up(count), thick, max(0.7, up(0) - up(count)), "bar", f"{count:,}")
        if disliked:
            drawn.box(
                x, up(0), thick, max(1.0, min(6.0, up(0) - up(disliked))), "bar chosen", f"{disliked:,} thumbs down"
            )
