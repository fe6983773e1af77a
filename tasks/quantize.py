"""Student → quantized candidates: folders that an engine serves as they are."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.once import once
from infra.settings import SetupError, settings
from quant.errors import QuantError
from quant.methods import GPTQ, QAT, RTN, Method, SmoothQuant
from tasks.menu import MENU

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CandidateSpec:
    """One way to quantize a student and the format it is served in.

    Attributes:
        method: None leaves the weights as they were trained.
        format: `gguf` is served by llama.cpp, `compressed_tensors` by the torch engine and by vLLM; `onnx` is a
            classifier's, served by ONNX Runtime.
        calibration: Rows of the workload's own training traffic that the method may look at.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Annotated[
        Method | None, Field(discriminator="name", description="How; None leaves the weights as trained"), MENU
    ]
    format: Annotated[
        Literal["gguf", "compressed_tensors", "onnx"],
        Field(description="Served by: llama.cpp; vLLM and the torch engine; ONNX Runtime (a classifier)"),
    ] = "gguf"
    calibration: Annotated[int, Field(ge=1, description="Training rows for calibration")] = 192

    @property
    def title(self) -> str:
        whose = "classifier " if self.format == "onnx" else ""
        if self.method is None:
            return f"{whose}float ({self.format})"
        kind = "QAT" if isinstance(self.method, QAT) else "PTQ"
        served = f", {self.format}" if self.format == "compressed_tensors" else ""
        return f"{whose}{self.method.label} {kind} ({self.method.name}{served})"


CANDIDATES: tuple[CandidateSpec, ...] = (
    CandidateSpec(RTN(bits=8)),
    CandidateSpec(GPTQ(bits=4)),
    CandidateSpec(QAT(bits=4), calibration=1024),  # it learns from them, and more from many than from few again
    CandidateSpec(None, "onnx"),
    CandidateSpec(RTN(bits=8, group_size=None), "onnx"),
    CandidateSpec(SmoothQuant(), "onnx"),
)


def fitting(kind: str, candidates: Iterable[CandidateSpec]) -> list[CandidateSpec]:
    """The candidates of a kind of student, by its name on the menu of `students/`: a classifier's are ONNX."""
    return [spec for spec in candidates if (spec.format == "onnx") == (kind == "classifier")]


def kind_of(student_id: str) -> str:
    """The kind of a student that was trained.

    Raises:
        SetupError: There is none.
    """
    from infra.database.session import session
    from infra.database.tables import Student

    with session(write=False) as db:
        if student := db.get(Student, student_id):
            return str(student.spec.get("name", "causal"))
    raise SetupError(f"student {student_id!r} is unknown; `flywheel distill` makes one and prints its id")


def quantize(
    student_id: str, spec: CandidateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Quantize a student and export it; returns the candidate's id, name, path, hash and bytes.

    The same student and spec give the same candidate: if it is there already, it is returned, and who asks for one that
    another process makes waits for it.

    Raises:
        SetupError: The format is another kind of student's, or cannot hold what the method makes.
    """
    from infra.database.session import session
    from infra.database.tables import Candidate, Student
    from infra.registry import artifact_hash

    identity = json.dumps([student_id, asdict(spec)], sort_keys=True)
    candidate_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = settings().home / "candidates" / candidate_id
    kind = kind_of(student_id)
    with session() as db:
        student = db.get_one(Student, student_id)
        source, dataset_id = Path(student.path), student.dataset_id
    if not fitting(kind, [spec]):
        other = "gguf or compressed_tensors" if spec.format == "onnx" else "onnx"
        raise SetupError(f"student {student_id} is {kind}, which is not served as {spec.format}; take format {other}")

    def known() -> dict[str, Any] | None:
        with session(write=False) as db:
            row = db.get(Candidate, candidate_id)
            return _summary(row) if row and folder.exists() else None

    def make() -> dict[str, Any]:
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write_artifact(source, dataset_id, partial, spec, candidate_id, progress)
        except QuantError as problem:
            raise SetupError(f"candidate {spec.title}: {problem}") from problem
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        candidate = Candidate(
            id=candidate_id, student_id=student_id, name=spec.title, format=spec.format, path=str(folder),
            artifact_hash=artifact_hash(folder), size=sum(f.stat().st_size for f in weights_of(folder)),
            spec=asdict(spec), flow_run_id=flow_run_id,
        )  # fmt: skip
        with session() as db:
            return _summary(db.merge(candidate))

    return once(folder.with_suffix(".lock"), known, make)


def weights_of(folder: Path) -> list[Path]:
    """The files of an artifact that hold weights."""
    return [file for kind in ("gguf", "safetensors", "onnx") for file in folder.glob(f"*.{kind}")]


def _write_artifact(
    source: Path, dataset_id: str, folder: Path, spec: CandidateSpec, candidate_id: str, progress: Progress | None
) -> None:
    import torch

    import quant
    from infra.engines.chat import load_tokenizer
    from tasks.curate import load

    torch.set_num_threads(settings().cores)
    torch.manual_seed(0)
    rows = load(dataset_id).split("train")[: spec.calibration]
    model, batches = (_classifier if spec.format == "onnx" else _causal)(source, rows)

    def told(done: int, total: int, what: str) -> None:
        if progress:
            progress(done, total, f"{spec.title}, {what}" if what.startswith("KL") else spec.title)

    if spec.method is not None:
        model = quant.quantize(model, spec.method, batches, progress=told)
    quant.export(model, folder / "model.gguf" if spec.format == "gguf" else folder, spec.format, source)
    if spec.format != "onnx":
        load_tokenizer(source).save_pretrained(folder)
    manifest = json.loads((source / "flywheel.json").read_text())
    manifest |= {"candidate_id": candidate_id, "format": spec.format}
    (folder / "flywheel.json").write_text(json.dumps(manifest, indent=2))


def _causal(source: Path, rows: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """A causal student, and rows as it is calibrated on them."""
    from infra.engines.chat import load_tokenizer
    from tasks.teachers.hf import load_model
    from tasks.training.examples import calibration

    return load_model(str(source)), list(calibration(rows, load_tokenizer(source), size=16, limit=len(rows)))


def _classifier(source: Path, rows: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """A classifier, and rows as it is calibrated on them."""
    from infra.engines.labels import Reader
    from tasks.students.classifier import texts
    from tasks.training.classify import batch_of, ordered
    from tasks.training.encoder import read

    manifest = json.loads((source / "flywheel.json").read_text())
    reader = Reader(source, manifest["max_length"])
    read_rows = texts(rows, manifest["labels"], reader)
    return read(source), [batch_of([read_rows[i] for i in group], reader) for group in ordered(read_rows)]


def _summary(candidate: Any) -> dict[str, Any]:
    return {
        "candidate_id": candidate.id, "student_id": candidate.student_id, "name": candidate.name,
        "path": candidate.path, "artifact_hash": candidate.artifact_hash, "bytes": candidate.size,
    }  # fmt: skip
