"""Student → quantized candidates: folders that an engine serves as they are."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import settings
from quant.methods import GPTQ, QAT, RTN, Method

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CandidateSpec:
    """One way to quantize a student and the format it is served in.

    Attributes:
        format: `gguf` is served by llama.cpp, `compressed_tensors` by the torch engine and by vLLM.
        calibration: Rows of the workload's own training traffic that the method may look at.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Annotated[Method, Field(discriminator="name")]
    format: Literal["gguf", "compressed_tensors"] = "gguf"
    calibration: Annotated[int, Field(ge=1, description="Training rows for calibration")] = 192

    @property
    def title(self) -> str:
        kind = "QAT" if isinstance(self.method, QAT) else "PTQ"
        served = "" if self.format == "gguf" else f", {self.format}"
        return f"{self.method.label} {kind} ({self.method.name}{served})"


CANDIDATES: tuple[CandidateSpec, ...] = (
    CandidateSpec(RTN(bits=8)),
    CandidateSpec(GPTQ(bits=4)),
    CandidateSpec(QAT(bits=4), calibration=1024),  # it learns from them, and more from many than from few again
)


def quantize(
    student_id: str, spec: CandidateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Quantize a student and export it; returns the candidate's id, name, path, hash and bytes.

    The same student and spec give the same candidate: if it is there already, it is returned.
    """
    from infra.database.session import session
    from infra.database.tables import Candidate, Student
    from infra.registry import artifact_hash

    identity = json.dumps([student_id, asdict(spec)], sort_keys=True)
    candidate_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = settings().home / "candidates" / candidate_id
    with session() as db:
        student = db.get_one(Student, student_id)
        source, dataset_id = Path(student.path), student.dataset_id
        known = db.get(Candidate, candidate_id)
        if known and folder.exists():
            return _summary(known)

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_artifact(source, dataset_id, partial, spec, candidate_id, progress)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    candidate = Candidate(
        id=candidate_id, student_id=student_id, name=spec.title, format=spec.format, path=str(folder),
        artifact_hash=artifact_hash(folder), size=sum(f.stat().st_size for f in weights_of(folder)),
        spec=asdict(spec), flow_run_id=flow_run_id,
    )  # fmt: skip
    with session() as db:
        return _summary(db.merge(candidate))


def weights_of(folder: Path) -> list[Path]:
    """The files of an artifact that hold weights."""
    return [*folder.glob("*.gguf"), *folder.glob("*.safetensors")]


def _write_artifact(
    source: Path, dataset_id: str, folder: Path, spec: CandidateSpec, candidate_id: str, progress: Progress | None
) -> None:
    import torch

    import quant
    from infra.engines.chat import load_tokenizer
    from tasks.curate import load
    from tasks.teachers.hf import load_model
    from tasks.training.examples import calibration

    torch.set_num_threads(settings().cores)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(source)
    rows = load(dataset_id).split("train")
    batches = list(calibration(rows, tokenizer, size=16, limit=spec.calibration))

    def told(done: int, total: int, what: str) -> None:
        if progress:
            progress(done, total, f"{spec.title}, {what}" if what.startswith("KL") else spec.title)

    model = quant.quantize(load_model(str(source)), spec.method, batches, progress=told)
    tokenizer.save_pretrained(folder)
    quant.export(model, folder / "model.gguf" if spec.format == "gguf" else folder, spec.format, source)
    manifest = json.loads((source / "flywheel.json").read_text())
    manifest |= {"candidate_id": candidate_id, "format": spec.format}
    (folder / "flywheel.json").write_text(json.dumps(manifest, indent=2))


def _summary(candidate: Any) -> dict[str, Any]:
    return {
        "candidate_id": candidate.id, "student_id": candidate.student_id, "name": candidate.name,
        "path": candidate.path, "artifact_hash": candidate.artifact_hash, "bytes": candidate.size,
    }  # fmt: skip
