"""A frozen dataset on disk: one Parquet file a split under home/datasets/<id>, and its row in the database.

Messages, tools and answers are JSON text in the Parquet: their shape differs from row to row. The id hashes rows and
spec, but not the rows' numbers in one database; the digests of the files stand in the report, and a dataset whose
files are gone or changed is not read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import delete

from infra.database.session import session
from infra.database.tables import Dataset as DatasetRow
from infra.database.tables import DatasetItem
from infra.prefix import Prefix
from infra.settings import SetupError, settings

SPLITS = ("train", "validation", "holdout")
AS_JSON = ("messages", "tools", "expected", "logged", "rejected")
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
        """The rows of "train", "validation" or "holdout", in order of time (tasks/cases.py: `Case.row`)."""
        import pyarrow.parquet  # type: ignore[import-untyped]

        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(Path(self.path) / f"{name}.parquet").to_pylist()
        return [
            {key: json.loads(value) if key in AS_JSON and value is not None else value for key, value in row.items()}
            for row in rows
        ]


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
    splits: Mapping[str, Sequence[dict[str, Any]]],
    prefix: Prefix | None,
    spec: dict[str, Any],
    report: dict[str, Any],
    flow_run_id: str | None,
) -> dict[str, Any]:
    """Write rows and their row in the database, or return what is there already, and whole."""
    baked = prefix.to_json() if prefix else None
    content = {
        name: [{k: v for k, v in row.items() if k != "interaction_id"} for row in splits[name]] for name in SPLITS
    }
    whole = json.dumps([workload, spec, baked, content], sort_keys=True)
    dataset_id = hashlib.sha256(whole.encode()).hexdigest()[:16]
    folder = settings().home / "datasets" / dataset_id
    try:
        return _result(load(dataset_id))
    except SetupError:
        files = _write(folder, splits)
    counts = {name: len(splits[name]) for name in SPLITS}
    kept = {**counts, **report, "prefix": baked, "files": files}
    with session() as db:
        db.execute(delete(DatasetItem).where(DatasetItem.dataset_id == dataset_id))
        db.merge(
            DatasetRow(
                id=dataset_id, workload=workload, path=str(folder), report=kept, spec=spec, flow_run_id=flow_run_id
            )
        )
        db.flush()
        db.add_all(
            DatasetItem(dataset_id=dataset_id, interaction_id=row["interaction_id"], split=name)
            for name in SPLITS
            for row in splits[name]
        )
    return _result(load(dataset_id))


def _write(folder: Path, splits: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, str]:
    """The Parquet files, all or none, and their digests."""
    import datasets

    datasets.disable_progress_bars()
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        if not psutil.pid_exists(int(left.name.split(".")[1])):  # whoever began it was killed
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in SPLITS:
            columns = {column: [_cell(column, row[column]) for row in splits[name]] for column in COLUMNS}
            features = datasets.Features({column: datasets.Value(kind) for column, kind in COLUMNS.items()})
            datasets.Dataset.from_dict(columns, features=features).to_parquet(str(partial / f"{name}.parquet"))
        files = {f"{name}.parquet": _digest(partial / f"{name}.parquet") for name in SPLITS}
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files


def _cell(column: str, value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if column in AS_JSON and value is not None else value


def _digest(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _result(dataset: Dataset) -> dict[str, Any]:
    shown = {key: value for key, value in dataset.report.items() if key not in ("prefix", "files")}
    baked = dataset.prefix.fingerprint[:16] if dataset.prefix else None
    return {"dataset_id": dataset.id, "workload": dataset.workload, "path": dataset.path, "prefix": baked, **shown}
