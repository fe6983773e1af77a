"""What our own gateway left in its spool when it ended while the database was away: of this home, or of another.

Everything else that it recorded is in the database already, or on its way: a gateway that runs, or the next one that
begins on this home, drains the spool by itself once the database is back. This reads it where no gateway runs any more,
or where the spool was carried here from another machine. The records have the ids that the gateway gave them, so that
reading a file twice, or while a gateway drains it, adds nothing. A spool file has no cursor: it is read whole until a
gateway deletes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.gateway import spool
from infra.settings import SetupError
from tasks.sources.part import Entry


@dataclass(frozen=True)
class Gateway:
    """The spool of a gateway.

    Attributes:
        paths: Spool files, or folders of them; by default this home's.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    paths: Annotated[tuple[str, ...], Field(description="Spool files, or folders of them; by default this home's")] = ()
    name: Literal["gateway"] = spool.SOURCE

    def parts(self) -> list["SpoolFile"]:
        """The files that hold anything.

        Raises:
            SetupError: A path does not exist, or nothing is in the spool.
        """
        found: dict[Path, None] = {}
        for path in [Path(path).expanduser() for path in self.paths] or [spool.folder()]:
            if self.paths and not path.exists():
                raise SetupError(f"path {str(path)!r} does not exist; give a spool file, or a folder of them")
            found |= dict.fromkeys([path.resolve()] if path.is_file() else spool.files(path.resolve()))
        if not found:
            places = ", ".join(self.paths) or str(spool.folder())
            raise SetupError(
                f"nothing is in the spool {places!r}: all that the gateway recorded is in the database already; "
                "there is nothing to do"
            )
        return [SpoolFile(path) for path in found]


class SpoolFile:
    """One spool file: a `Part`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind, self.label, self.cursor = spool.SOURCE, str(path), f"{spool.SOURCE}:{path}"
        self.size, self.skipped = spool.size_of(path), 0

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """All of its lines; none where the gateway has drained it meanwhile.

        Raises:
            SetupError: The file cannot be opened.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as problem:
            raise SetupError(
                f"file {str(self.path)!r} cannot be read ({problem.strerror}); check its rights"
            ) from problem
        with file:
            for number, raw, done in spool.lines(file):
                line = spool.read(raw, f"{self.path}:{number}")
                yield Entry(line.where, raw, line.digest, line.row, line.reason, None, done)
