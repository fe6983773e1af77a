"""Interactions a day as an SVG picture: a bar a day, stacked by workload, and thumbs down as a line over them."""

from html import escape
from typing import Any
from urllib.parse import quote

WIDTH, HEIGHT, LEFT, FOOT, HEAD = 760, 260, 56, 24, 40
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")  # Paul Tol's, told apart by all
OTHERS = "#bbbbbb"


def picture(found: dict[str, Any]) -> str:
    """What `tasks.traffic.traffic` found as an SVG in a `data:` URI, which needs no server of files."""
    return f"data:image/svg+xml;charset=utf-8,{quote(svg(found))}"


def svg(found: dict[str, Any]) -> str:
    days, rows = found["days"], sorted(found["workloads"], key=lambda row: -row["recent"])
    totals = [sum(row["per_day"].get(day, 0) for row in rows) for day in days]
    top, step = max(totals, default=0) or 1, (WIDTH - LEFT) / max(1, len(days))
    floor = HEIGHT - FOOT
    scale = (floor - HEAD) / top
    drawn, bottoms = [], [float(floor)] * len(days)
    for n, row in enumerate(rows):
        colour = COLOURS[n] if n < len(COLOURS) else OTHERS
        for i, day in enumerate(days):
            tall = scale * row["per_day"].get(day, 0)
            bottoms[i] -= tall
            if tall:
                drawn.append(_box(LEFT + i * step + 1, bottoms[i], max(1.0, step - 2), tall, colour))
        if n <= len(COLOURS):
            name = row["workload"] if n < len(COLOURS) else "others"
            x = LEFT + n * (WIDTH - LEFT) / min(len(rows) + 1, len(COLOURS) + 2)
            drawn += [_box(x, 8, 9, 9, colour), _text(x + 13, 16, name[:18])]
    down = [sum(row["down_per_day"].get(day, 0) for row in rows) for day in days]
    if most := max(down, default=0):
        points = " ".join(
            f"{LEFT + (i + 0.5) * step:.1f},{floor - (floor - HEAD) * n / most:.1f}" for i, n in enumerate(down)
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="#000" stroke-width="1.5"/>')
        drawn.append(_text(LEFT, 32, f"line: thumbs down, at most {most:,} a day"))
    marks = [_text(LEFT - 6, y + 4, said, "end") for y, said in ((floor, "0"), (HEAD, f"{top:,}"))]
    if days:
        marks += [_text(LEFT, HEIGHT - 6, days[0]), _text(WIDTH, HEIGHT - 6, days[-1] if len(days) > 1 else "", "end")]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return "".join([head, _box(0, 0, WIDTH, HEIGHT, "#fff"), *drawn, *marks, "</svg>"])


def _box(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, said: str, anchor: str = "start") -> str:
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(said)}</text>'
