"""Everything that cannot be made again, in one file: database, registry, artifacts, keys; and the way back.

In it is the home as it stands, but for what comes back by itself (downloads, a teacher's cached distributions, logs)
or is another program's (Prefect's runs). The order matters, since all goes on meanwhile: first the spool, whose lines
may be stored before the database is copied but never fall between the two; then the databases; then the files, which
are there before any row names them.

The keys of the home go with it: without the pseudonyms' key the same address would get another pseudonym from then on.
So the archive is as secret as the home, and only its owner may read it.

A restore goes into an empty home only. It is made beside it and renamed: killed on the way, nothing is there.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.backup import copies
from infra.backup.archive import unpack, verified, written
from infra.database.session import hidden
from infra.gateway.spool import files as spooled
from infra.gateway.spool import locked
from infra.settings import SetupError, settings
from infra.tracking import shown

DATABASE, REGISTRY = "flywheel.db", "mlflow.db"
LEFT_OUT = {"prefect", "logs", "serving", "teachers", "up.json", "spool"}  # the spool goes first, by itself
UNFINISHED = (".partial", ".lock", ".tmp", "-wal", "-shm", "-journal")
ROOM = 1.1  # of the bytes of the files, for what is written beside them


def backup(path: Path) -> dict[str, Any]:
    """Write everything to an archive; returns where it is, its bytes and files, and what is not in it.

    Raises:
        SetupError: The path is taken or in the home, or a database cannot be reached.
    """
    home, target = settings().home, path.expanduser().absolute()
    if target.exists():
        raise SetupError(f"{target} exists; name a file that does not")
    if target.is_relative_to(home):
        raise SetupError(f"{target} is in the home, and would be lost with it; name a file outside of {home}")
    if not target.parent.is_dir():
        raise SetupError(f"folder {str(target.parent)!r} does not exist; make it, or name a file elsewhere")
    if copies.file_of(settings().database_url) == home / DATABASE and not (home / DATABASE).exists():
        raise SetupError(f"there is nothing in {home} yet; `flywheel ingest jsonl PATH` begins")
    said: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "home": str(home),
        "database": hidden(settings().database_url), "registry": shown(settings().mlflow_uri),
        "versions": {**{name: version(name) for name in ("flywheel", "mlflow")}, "python": sys.version.split()[0]},
        "notes": list(notes()),
    }  # fmt: skip
    with written(target, said) as archive, TemporaryDirectory(prefix=".flywheel-backup-", dir=target.parent) as made:
        for file in spooled(home / "spool"):
            with file.open("rb") as stream, locked(stream):
                whole = os.fstat(stream.fileno()).st_size
            archive.add(f"spool/{file.name}", file, whole)
        copies.save(settings().database_url, Path(made) / DATABASE)
        said["revision"] = copies.revision(Path(made) / DATABASE)
        archive.add(DATABASE, Path(made) / DATABASE)
        registry = copies.file_of(settings().mlflow_uri) if settings().mlflow_uri.startswith("sqlite") else None
        said["registry_kept"] = registry is not None and registry.exists()
        if registry is not None and registry.exists():
            copies.copy(registry, Path(made) / REGISTRY)
            archive.add(REGISTRY, Path(made) / REGISTRY)
        for name, file in kept(home):
            archive.add(name, file)
    return {
        "path": str(target), "bytes": target.stat().st_size, "files": len(archive.files),
        "revision": said["revision"], "notes": said["notes"],
    }  # fmt: skip


def notes() -> Iterator[str]:
    """What is not in a backup and how it is kept, and what is in it that is secret."""
    chosen = settings()
    if (chosen.home / "redaction.key").exists():
        yield "the key of the pseudonyms is in it: whoever reads the file can tell who stands behind one; keep it safe"
    set_there = [name for name in ("redaction_key", "tokens", "webhook_secret", "teacher_key", "server_key")
                 if getattr(chosen, name).get_secret_value()]  # fmt: skip
    if set_there:
        yield f"not in it: {', '.join(f'FLYWHEEL_{name.upper()}' for name in set_there)}, which the environment sets"
    if not chosen.mlflow_uri.startswith("sqlite"):
        yield (
            f"not in it: the registry at {shown(chosen.mlflow_uri)}; back up that server's database (pg_dump) and its "
            "artifact store (a copy of the bucket) after this, so that it has every version named here"
        )
    yield "not in it: Prefect's runs and schedules; deployments come back with `flywheel up` or `prefect deploy`"


def kept(home: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of each file of the home that is kept; what goes away meanwhile was not needed."""
    databases = {copies.file_of(settings().database_url), home / DATABASE, home / REGISTRY}
    if settings().mlflow_uri.startswith("sqlite"):
        databases.add(copies.file_of(settings().mlflow_uri))
    server = settings().server_folder.partition(":")[0]
    skipped = {Path(server).absolute()} if server else set()
    for folder, folders, names in os.walk(home):
        here = Path(folder)
        top = here == home
        folders[:] = sorted(
            name for name in folders
            if not (top and (name in LEFT_OUT or name.startswith("package-")))
            and ".partial" not in name and here / name not in skipped
        )  # fmt: skip
        for name in sorted(names):
            file = here / name
            unfinished = name.endswith(UNFINISHED) or ".partial" in name
            if unfinished or file in databases or (top and name in LEFT_OUT) or file.is_symlink() or not file.is_file():
                continue
            yield file.relative_to(home).as_posix(), file


def restore(path: Path) -> dict[str, Any]:
    """Make an empty home what the backup was made of; returns what is there now.

    Raises:
        SetupError: The home or the database is not empty, the backup is not whole, or there is no room.
    """
    chosen, source = settings(), path.expanduser().absolute()
    home, url = chosen.home, chosen.database_url
    file = copies.file_of(url)
    if home.is_dir() and (there := sorted(entry.name for entry in home.iterdir())):
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        raise SetupError(f"{home} has {', '.join(there[:5])}{more}; set FLYWHEEL_HOME to an empty or new folder")
    if file is not None and file.exists():
        raise SetupError(f"database {file} exists; move it, or set FLYWHEEL_DATABASE to a new one")
    manifest = verified(source)
    if chosen.mlflow and manifest["registry_kept"]:
        raise SetupError(
            f"the backup holds a registry of SQLite and files, and FLYWHEEL_MLFLOW is {shown(chosen.mlflow)!r}; unset "
            "it for the restore"
        )
    if file is None:
        copies.require_empty(url)
    home.parent.mkdir(parents=True, exist_ok=True)
    sizes = ROOM * sum(entry["bytes"] for entry in manifest["files"].values())
    if (free := shutil.disk_usage(home.parent).free) < sizes:
        raise SetupError(f"{home.parent} has {free >> 20} MiB free, the backup needs {int(sizes) >> 20}; make room")
    forget_dead(home)
    beside = home.with_name(f".{home.name}.restoring-{os.getpid()}")
    try:
        unpack(source, beside)
        before = Path(manifest["home"])
        copies.move(beside / DATABASE, before, home, copies.paths())
        if manifest["registry_kept"]:
            copies.move(beside / REGISTRY, before, home)
        place(beside, file, url)
        beside.rename(home)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {
        "home": str(home), "database": hidden(url), "files": len(manifest["files"]), "made": manifest["made"],
        "notes": [note for note in manifest["notes"] if note.startswith("not in it")],
    }  # fmt: skip


def place(beside: Path, file: Path | None, url: str) -> None:
    """Put the database where the settings have it, which may be outside of the home."""
    saved = beside / DATABASE
    if file is None:
        copies.load(saved, url)
        saved.unlink()
    elif file != settings().home / DATABASE:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            shutil.copyfile(saved, partial)
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
        saved.unlink()


def forget_dead(home: Path) -> None:
    """Remove what restores that were killed have left beside the home."""
    for left in home.parent.glob(f".{home.name}.restoring-*"):
        try:
            os.kill(int(left.name.rpartition("-")[2]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(left, ignore_errors=True)
        except PermissionError:
            continue
