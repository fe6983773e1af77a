"""Rows taken out of files: Parquet of datasets and scorecards, lines of the gateway's spool, and bytes that name an id.

A file is written anew beside the old one and put in its place, so that a reader finds either.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

from infra.gateway import spool

NAMES = ("client_id", "id", "record_id")
STRING = re.compile(rb'"((?:[^"\\]|\\.)*)(?:"|\Z)')  # of JSON, or of what is left of it
NUMBER = re.compile(rb'id"\s*:\s*(-?[0-9]+)')
TELLING = 8  # an id of so many bytes means itself wherever it stands


def rewritten(file: Path, interactions: Set[int]) -> tuple[Path, int]:
    """A copy of a Parquet file, beside it, without the rows of these interactions, and how many are left."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as compute  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    table = parquet.read_table(file)
    erased = compute.is_in(table["interaction_id"], value_set=pa.array(sorted(interactions), pa.int64()))
    kept = table.filter(compute.invert(erased))
    beside = file.with_suffix(".partial")
    parquet.write_table(kept, beside)
    return beside, kept.num_rows


def digest_of(file: Path) -> str:
    """sha256 of a file, as `tasks/dataset/frozen.py` keeps it of a dataset's."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def held(file: Path, interactions: Set[int]) -> int:
    """How many rows of these interactions a Parquet file has."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    column = parquet.read_table(file, columns=["interaction_id"])["interaction_id"].to_pylist()
    return sum(number in interactions for number in column)


def names(raw: bytes, ids: Set[str], telling: str) -> bool:
    """Whether bytes that could not be understood hold one of the ids as a value, or `telling` anywhere, if it is long.

    An id such as "1" stands in every record somewhere; so it counts as a whole JSON string, or after a key that ends in
    `id`, and nowhere else.
    """
    if len(said := telling.encode()) >= TELLING and said in raw:
        return True
    found = {match[1] for pattern in (STRING, NUMBER) for match in pattern.finditer(raw)}
    return any(_text(value) in ids for value in found)


def _text(value: bytes) -> str:
    try:
        return str(json.loads(b'"%b"' % value))
    except ValueError:
        return value.decode(errors="replace")


def spooled(client: str | None) -> Iterator[str]:
    """Ids of the client's interactions that the gateway could not bring to the database yet."""
    for file in _spool():
        for line in file.read_bytes().splitlines():
            record = _record(line)
            if client is not None and str(record.get("client_id")) == client and record.get("id"):
                yield str(record["id"])


def erase_spooled(about: Callable[[dict[str, Any], bytes], bool], dry_run: bool) -> int:
    """Take lines out of the spool; how many.

    The gateway's writers lock a file and look whether it still has its name (`infra/gateway`), so that no line is
    written into one that was replaced.
    """
    erased = 0
    for file in _spool():
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            lines = stream.read().splitlines(keepends=True)
            kept = [line for line in lines if not about(_record(line), line)]
            erased += len(lines) - len(kept)
            if len(kept) < len(lines) and not dry_run:
                beside = file.with_suffix(".partial")
                beside.touch(0o600)
                beside.write_bytes(b"".join(kept))
                os.replace(beside, file)
    return erased


def _spool() -> list[Path]:
    return sorted(spool.folder().glob("*.jsonl"))


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
