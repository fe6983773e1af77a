"""One archive of files, each with its sha256: `.tar.gz`, written as a stream and read back before it has its name.

The last member is `manifest.json`: what was kept, its bytes and hashes, and whatever else the writer says. An archive
may come from anywhere: only regular files with plain relative names are taken from it, nothing of it is executed, and
nothing is written before every hash has been compared.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from infra.settings import SetupError

MANIFEST = "manifest.json"
FORMAT = 1
BROKEN = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)
PIECE = 1 << 20


class Archive:
    """An archive that is being written; `add` files to it.

    Attributes:
        files: By name, the bytes and sha256 of what was added.
    """

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, name: str, file: Path, size: int | None = None) -> None:
        """Add a file, or the first `size` bytes of one that is being appended to.

        Raises:
            OSError: It is not there, or became shorter while it was read.
        """
        with file.open("rb") as stream:
            found = os.fstat(stream.fileno())
            info = tarfile.TarInfo(name)
            info.size, info.mtime = found.st_size if size is None else size, int(found.st_mtime)
            info.mode = found.st_mode & 0o777
            hashed = Hashed(stream)
            self.tar.addfile(info, hashed)  # type: ignore[arg-type]  # it is only read from
            self.files[name] = {"bytes": info.size, "sha256": hashed.digest.hexdigest()}


class Hashed:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self.stream.read(size)
        self.digest.update(piece)
        return piece


@contextmanager
def written(path: Path, said: dict[str, Any]) -> Iterator[Archive]:
    """An archive at `path`, which is there when it is whole and has been read back; only its owner may read it.

    Args:
        said: Goes into the manifest; may be added to until the end.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with (
            open(partial, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
            gzip.GzipFile(fileobj=file, filename="", mode="wb", compresslevel=1) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            archive = Archive(tar)
            yield archive
            text = json.dumps({"format": FORMAT, **said, "files": archive.files}, indent=1).encode()
            info = tarfile.TarInfo(MANIFEST)
            info.size, info.mode = len(text), 0o600
            tar.addfile(info, io.BytesIO(text))
        with partial.open("rb") as whole:
            os.fsync(whole.fileno())
        verified(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def verified(path: Path) -> dict[str, Any]:
    """The manifest of an archive, every file of which is what was kept.

    Raises:
        SetupError: It is not there, is no archive of ours, or has another byte somewhere.
    """
    found: dict[str, dict[str, Any]] = {}
    text = b""
    for member, stream in members(path):
        if member.name in found or text:
            raise SetupError(f"{path} has {member.name!r} where nothing should be; {WAY_OUT}")
        if member.name == MANIFEST:
            text = stream.read()
            continue
        digest = hashlib.sha256()
        while piece := stream.read(PIECE):
            digest.update(piece)
        found[member.name] = {"bytes": member.size, "sha256": digest.hexdigest()}
    try:
        manifest: dict[str, Any] = json.loads(text)
        listed, known = dict(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError) as problem:
        raise SetupError(f"{path} has no manifest of `flywheel backup`; {WAY_OUT}") from problem
    if known != FORMAT:
        raise SetupError(f"{path} has format {known!r}, this version of Flywheel reads {FORMAT}; install the newer one")
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if wrong:
        raise SetupError(f"{path}: {', '.join(wrong[:3])} of {len(wrong)} is not what was kept; {WAY_OUT}")
    return manifest


def unpack(path: Path, folder: Path) -> None:
    """Write an archive's files below a folder, new ones only."""
    for member, stream in members(path):
        if member.name == MANIFEST:
            continue
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = member.mode & 0o777
        with open(target, "xb", opener=lambda name, flags, mode=mode: os.open(name, flags, mode)) as file:  # type: ignore[misc]
            shutil.copyfileobj(stream, file, PIECE)


WAY_OUT = "nothing was touched; take another backup"


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Each member of an archive with its bytes.

    Raises:
        SetupError: It cannot be read, or has a member that is no plain file below the folder that it is for.
    """
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or not parts or parts[0] == "/" or ".." in parts or "\0" in member.name:
                    raise SetupError(f"{path} has {member.name!r}, which is no file below a folder; {WAY_OUT}")
                stream = tar.extractfile(member)
                assert stream is not None
                yield member, stream
            while packed.read(PIECE):  # gzip's own checksum, of the manifest as well, comes at the very end
                pass
    except BROKEN as problem:
        said = str(problem) or type(problem).__name__
        raise SetupError(f"{path} is no whole backup ({said}); {WAY_OUT}") from problem
    except FileNotFoundError as problem:
        raise SetupError(f"backup {str(path)!r} does not exist; name a file that `flywheel backup` wrote") from problem
