"""What a check finds: ok, a warning, or that something is wrong; in one line, with the command that mends it."""

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Literal, NamedTuple

from infra.settings import SetupError

Level = Literal["ok", "warning", "wrong"]


class Finding(NamedTuple):
    """One line of `flywheel doctor`; `mend` is the exact command, or empty where nothing is to be mended."""

    check: str
    level: Level
    said: str
    mend: str = ""


Check = Callable[[], Iterator[tuple[Level, str, str]]]


def run(name: str, check: Check, seconds: float) -> list[Finding]:
    """What a check says. One that raises is itself a finding, and so is one that hangs: it is waited for no longer."""
    found: list[Finding] = []
    ended: list[bool] = []

    def work() -> None:
        try:
            for level, said, mend in check():
                found.append(Finding(name, level, said, mend))
        except SetupError as problem:
            said, _, mend = str(problem).partition("; ")
            found.append(Finding(name, "wrong", said, mend))
        except Exception as problem:
            said = " ".join(str(problem).split())[:200]
            found.append(Finding(name, "wrong", f"the check itself failed: {type(problem).__name__}: {said}"))
        ended.append(True)

    thread = Thread(target=work, daemon=True)  # one that hangs must not keep the program from ending
    thread.start()
    thread.join(seconds)
    so_far = list(found)
    return so_far if ended else [*so_far, Finding(name, "wrong", f"no answer within {seconds:.0f} s")]
