"""FLYWHEEL_ variables that nobody reads, and a gateway that strangers could write to."""

import difflib
import os
from collections.abc import Iterator

from infra.gateway.access import require_tokens
from infra.settings import Settings, SetupError, settings
from tasks.doctor.finding import Level

OTHERS = {"FLYWHEEL_SHARED"}  # the tests' own


def check() -> Iterator[tuple[Level, str, str]]:
    known = {f"FLYWHEEL_{name.upper()}" for name in Settings.model_fields}
    given = sorted(name for name in os.environ if name.upper().startswith("FLYWHEEL_"))
    unknown = [name for name in given if name.upper() not in known | OTHERS]
    for name in unknown:
        near = difflib.get_close_matches(name.upper(), known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        renamed = f"export {near[0]}=...; unset {name}" if near else f"unset {name}"
        yield "warning", f"{name} is no setting and does nothing{meant}", renamed
    try:
        require_tokens(settings().host)
    except SetupError as problem:
        said, _, mend = str(problem).partition("; ")
        yield "wrong", said, mend
    if not unknown:
        set_there = ", ".join(name for name in given if name.upper() in known) or "none is set"
        yield "ok", f"settings: {set_there}", ""
