"""A page as one file: HTML with its style sheet and pictures in it, no script, and nothing that a browser would fetch.

What came from traffic is text, wherever it stands: templates escape all they are given but the pictures, which escape
what they write (`pen.py`). Should something slip through, the page's own policy lets no browser run or fetch it: the
one style sheet is allowed by its hash, and nothing else.
"""

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.report import numbers
from tasks.report.pen import seen

HERE = Path(__file__).parent
WIDE, HALF, NARROW = 1016, 488, 328


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: seen(value) if type(value) is str else value,
    )  # fmt: skip
    made.filters |= {
        name: getattr(numbers, name)
        for name in ("percent", "points", "size", "ms", "count", "times", "dollars", "seconds")
    }
    return made


def page(template: str, **parts: Any) -> str:
    """A template of this folder, filled in."""
    style = (HERE / "style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(style=Markup(style), policy=policy, **parts)


def both(draw: Callable[[int], Markup], wide: int = WIDE) -> Markup:
    """A picture for wide screens and for narrow ones, of which one is shown; empty where there is nothing to draw."""
    drawn = draw(wide)
    if not drawn:
        return Markup("")
    shown = Markup('<div class="wide">{}</div><div class="narrow">{}</div>')
    return shown.format(drawn, draw(NARROW))
