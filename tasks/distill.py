"""Dataset → student: a folder that `quantize` reads, with an id of its own.

What kinds of students there are, and how each is trained, is in `students/`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.once import once
from infra.settings import settings
from tasks.students import StudentSpec

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset

Progress = Callable[[int, int, str], None]
CURVES = "training.json"  # in a student's folder: {loss: [[step, loss], ...], validation: [...]}


def distill(
    dataset_id: str, spec: StudentSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Train a student on a frozen dataset; returns its id, path and report.

    The same dataset, spec, base and teacher give the same student: if it is there already, it is returned, and who asks
    for one that another process trains waits for it. A run that was killed is gone on with.

    Raises:
        SetupError: The base is no model, or nothing of the dataset can be learned from.
    """
    from infra.database.session import session
    from infra.database.tables import Student
    from tasks.dataset.frozen import load

    dataset = load(dataset_id)
    parents = [dataset_id, asdict(spec), *spec.parents(dataset)]
    student_id = hashlib.sha256(json.dumps(parents, sort_keys=True).encode()).hexdigest()[:16]
    folder = settings().home / "students" / student_id

    def known() -> dict[str, Any] | None:
        with session(write=False) as db:
            if (row := db.get(Student, student_id)) and folder.exists():
                return {"student_id": student_id, "path": row.path, **row.report}
        return None

    def make() -> dict[str, Any]:
        report = _train(dataset, spec, folder, progress)
        trained = Student(id=student_id, dataset_id=dataset_id, path=str(folder), report=report, spec=asdict(spec))
        trained.flow_run_id = flow_run_id
        with session() as db:
            db.merge(trained)
        shutil.rmtree(_work(folder))
        return {"student_id": student_id, "path": str(folder), **report}

    return once(folder.with_suffix(".lock"), known, make)


def _train(dataset: "Dataset", spec: StudentSpec, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Train into a folder, whose name is the student's id; returns the report. Checkpoints stay in the work folder."""
    work, partial = _work(folder), folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for made in (work, partial):
        made.mkdir(parents=True, exist_ok=True)
    report = {"dataset_id": dataset.id, **spec.train(dataset, partial, work, progress)}
    curves = {"loss": report.pop("curve", []), "validation": report["history"]}
    (partial / CURVES).write_text(json.dumps(curves))
    manifest = json.loads((partial / "flywheel.json").read_text()) | {
        "workload": dataset.workload, "prefix": dataset.prefix.to_json() if dataset.prefix else None,
        "dataset_id": dataset.id, "student_id": folder.name,
    }  # fmt: skip
    (partial / "flywheel.json").write_text(json.dumps(manifest, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return report


def _work(folder: Path) -> Path:
    return folder.with_suffix(".work")
