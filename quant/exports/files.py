"""How exports reach the disk, and how they are trusted again: whole or not at all, with a checksum beside the weights.

FILE.sha256 holds `DIGEST  FILE`, a line for each file of weights, as `sha256sum -c` reads it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.errors import QuantError

SUFFIX = ".sha256"


@contextmanager
def folder(path: Path, format: str, tokenizer_dir: Path, last: str) -> Iterator[Path]:
    """A temporary folder for the block to fill; what is in it at the end replaces the files of those names in `path`.

    The file called `last` is moved last, and an old one is removed first: without it the folder is no model.
    Raises QuantError where `path` is a file or there is no tokenizer to put beside the weights.
    """
    if path.exists() and not path.is_dir():
        raise QuantError(f"{path} is a file, and {format} writes a folder; give another path")
    if not (tokenizer_dir / "tokenizer.json").exists():
        raise QuantError(f"no tokenizer.json in {tokenizer_dir}; pass the folder the tokenizer was saved to")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        path.mkdir(exist_ok=True)
        (path / last).unlink(missing_ok=True)
        for done in sorted(partial.iterdir(), key=lambda f: f.name == last):
            os.replace(done, path / done.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checksum_of(file: Path) -> Path:
    """The file that holds the checksum of `file`."""
    return file.with_name(file.name + SUFFIX)


def digest_of(file: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(file: Path) -> None:
    """Write the checksum of `file` beside it."""
    checksum_of(file).write_text(f"{digest_of(file)}  {file.name}\n")


def check(file: Path, checksums: Path | None = None) -> None:
    """Raise QuantError unless `file` is what its checksum was made of; one without a checksum is taken as it is."""
    held = checksums or checksum_of(file)
    lines = held.read_text().splitlines() if held.exists() else []
    promised = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if file.name in promised and file.exists() and promised[file.name] != digest_of(file):
        raise QuantError(f"{file} is not the file its checksum was made of; copy or export it again")
