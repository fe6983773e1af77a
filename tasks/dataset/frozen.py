"""A frozen dataset on disk: one Parquet file a split under home/datasets/<id>, and its row in the database.

Beside train, validation and holdout it has `disliked`: answers that were objected to, as `rejected`, with nothing
expected in their place. An answer that somebody liked better is in train, where the request is the same.
Messages, tools and answers are JSON text in the Parquet: their shape differs from row to row. The id hashes rows and
spec, but not the rows' numbers in one database; the digests of the files stand in the report, and a dataset whose
files are gone or changed is not read.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from sqlalchemy import delete, insert

from infra.database.jsontext import dumps, to_column
from infra.database.session import session
from infra.database.tables import Dataset as DatasetRow
from infra.database.tables import DatasetItem
from infra.prefix import Prefix
from infra.settings import SetupError, settings

SPLITS = ("train", "validation", "holdout", "disliked")
PAGE = 1000
BATCH = 64  # rows with log-probabilities: some MB
AS_JSON = ("messages", "tools", "expected", "logged", "rejected", "logprobs")
COLUMNS = {
    "interaction_id": "int64", "record": "string", "conversation": "string", "at": "string",
    **dict.fromkeys(AS_JSON, "string"), "origin": "string", "weight": "float64", "latency_ms": "float64",
    "prompt_tokens": "int64", "completion_tokens": "int64",
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """A frozen dataset.

    Attributes:
        prefix: The baked prefix, which its messages lack; None where rows carry system prompt and tools.
        report: What `curate` counted.
    """

    id: str
    workload: str
    path: str
    prefix: Prefix | None
    report: dict[str, Any]

    def split(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of SPLITS, in order of time (tasks/dataset/cases.py: `Case.row`).

        All but their log-probabilities, which are a hundred times as long as the rest.
        """
        import pyarrow.parquet  # type: ignore[import-untyped]

        if f"{name}.parquet" not in self.report["files"]:
            return []  # frozen before there was this split
        wanted = [column for column in COLUMNS if column != "logprobs"]
        table = pyarrow.parquet.read_table(Path(self.path) / f"{name}.parquet", columns=wanted)
        rows: list[dict[str, Any]] = table.to_pylist()
        return [
            {key: json.loads(value) if key in AS_JSON and value is not None else value for key, value in row.items()}
            for row in rows
        ]

    def logprobs(self, name: str) -> Iterator[list[Any] | None]:
        """What the teacher thought of each token of `expected`, a row after the other, as `split` has them.

        None for a row without (tasks/teachers/logprobs.py has the form, and what to make of it).
        """
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(Path(self.path) / f"{name}.parquet") as file:
            if "logprobs" not in file.schema_arrow.names:  # frozen before there were any
                yield from itertools.repeat(None, file.metadata.num_rows)
                return
            for batch in file.iter_batches(BATCH, columns=["logprobs"]):
                for value in batch.column(0):
                    yield json.loads(value.as_py()) if value.is_valid else None


def load(dataset_id: str) -> Dataset:
    """A frozen dataset, after checking that its files are those that were frozen.

    Raises:
        SetupError: There is no such dataset, or a file of it is missing or changed.
    """
    with session(write=False) as db:
        row = db.get(DatasetRow, dataset_id)
    if row is None:
        raise SetupError(f"dataset {dataset_id!r} is unknown; make one with `flywheel curate --workload NAME`")
    for name, digest in row.report["files"].items():
        if _digest(Path(row.path) / name) != digest:
            raise SetupError(
                f"dataset {dataset_id!r}: {Path(row.path) / name} is missing or was changed; "
                f"freeze it again with `flywheel curate --workload {row.workload}`"
            )
    return Dataset(row.id, row.workload, row.path, Prefix.from_json(row.report["prefix"]), row.report)


def freeze(
    workload: str,
    rows: Iterable[tuple[str, dict[str, Any]]],
    prefix: Prefix | None,
    spec: dict[str, Any],
    report: Callable[[], dict[str, Any]],
    flow_run_id: str | None,
) -> dict[str, Any]:
    """Write rows and their row in the database, or return what is there already, and whole.

    Args:
        rows: Each with the name of its split, in order of time; read once.
        report: Called when all have been read.
    """
    baked = prefix.to_json() if prefix else None
    folder = settings().home / "datasets"
    with _partial(folder) as partial:
        written = _write(partial, rows, hashlib.sha256(json.dumps([workload, spec, baked], sort_keys=True).encode()))
        dataset_id = written.digest[:16]
        with contextlib.suppress(SetupError):
            return _result(load(dataset_id))
        counts = {name: len(written.ids[name]) for name in SPLITS}
        files = {f"{name}.parquet": _digest(partial / f"{name}.parquet") for name in SPLITS}
        path = folder / dataset_id
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    kept = {**counts, **report(), "prefix": baked, "files": files}
    row = {"workload": workload, "path": str(path), "report": kept, "spec": spec, "flow_run_id": flow_run_id}
    with session() as db:
        db.execute(delete(DatasetItem).where(DatasetItem.dataset_id == dataset_id))
        db.merge(DatasetRow(id=dataset_id, **row))
        db.flush()
        for name, ids in written.ids.items():
            for start in range(0, len(ids), PAGE):
                items = [
                    {"dataset_id": dataset_id, "interaction_id": one, "split": name}
                    for one in ids[start : start + PAGE]
                ]
                db.execute(insert(DatasetItem), items)
    return _result(load(dataset_id))


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A folder to write in, gone at the end unless it was renamed; what killed runs left of theirs goes, too."""
    for left in folder.glob("*.partial"):
        if not psutil.pid_exists(int(left.name.split(".")[0])):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder / f"{os.getpid()}.{threading.get_ident()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Written(NamedTuple):
    digest: str
    ids: dict[str, "array[int]"]


def _write(folder: Path, rows: Iterable[tuple[str, dict[str, Any]]], content: Any) -> _Written:
    """One Parquet file a split, in groups of a page; `content`, a hash, takes in every row."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pa.schema([(column, getattr(pa, kind)()) for column, kind in COLUMNS.items()])
    ids = {name: array("q") for name in SPLITS}
    pages: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", schema)) for name in SPLITS}

        def flush(name: str) -> None:
            writers[name].write_table(pa.Table.from_pylist(pages[name], schema))
            pages[name].clear()

        for name, row in rows:
            said = {key: value for key, value in row.items() if key != "interaction_id"}
            content.update(dumps([name, said], sort_keys=True))
            ids[name].append(row["interaction_id"])
            pages[name].append({column: _cell(column, row[column]) for column in COLUMNS})
            if len(pages[name]) == PAGE:
                flush(name)
        for name in SPLITS:
            flush(name)
    return _Written(content.hexdigest(), ids)


def _cell(column: str, value: Any) -> Any:
    return to_column(value) if column in AS_JSON and value is not None else value


def _digest(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _result(dataset: Dataset) -> dict[str, Any]:
    shown = {key: value for key, value in dataset.report.items() if key not in ("prefix", "files")}
    baked = dataset.prefix.fingerprint[:16] if dataset.prefix else None
    return {"dataset_id": dataset.id, "workload": dataset.workload, "path": dataset.path, "prefix": baked, **shown}
