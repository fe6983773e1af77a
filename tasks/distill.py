"""Dataset → fine-tuned student: a LoRA on a base model, merged, as a folder that `quantize` reads.

What is learned and how is in `trainer.py`; here a dataset and a spec become a student with an id of its own.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from infra.settings import SetupError, settings
from tasks.teachers import LocalTeacher, teacher_for
from tasks.teachers.hf import load_model, model_fingerprint

if TYPE_CHECKING:
    import torch

    from tasks.curate import Dataset

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class DistillSpec:
    """How a student is trained."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    base: Annotated[str, Field(description="Hugging Face id or path; empty takes FLYWHEEL_STUDENT")] = ""
    rank: Annotated[int, Field(ge=1, le=256, description="LoRA rank r")] = 32
    alpha: Annotated[int, Field(ge=1, description="LoRA alpha")] = 256
    learning_rate: Annotated[
        float, Field(gt=0, lt=1, description="Peak rate, in AdamW's measure; a base of a billion parameters wants less")
    ] = 1e-3
    epochs: Annotated[int, Field(ge=1, le=100, description="Passes over the training rows")] = 5
    max_steps: Annotated[int, Field(ge=0, description="Stop after so many steps, however many rows; 0: no limit")] = 0
    batch_tokens: Annotated[int, Field(ge=64, description="Tokens in one step, padding included")] = 384
    kl_weight: Annotated[float, Field(ge=0, description="Weight of the teacher's distribution; 0 leaves it out")] = 1.0
    top_k: Annotated[int, Field(ge=1, le=1024, description="Teacher tokens kept at each position")] = 32
    max_length: Annotated[int, Field(ge=16, description="Longer examples, in tokens, are left out and counted")] = 1024
    checkpoint_steps: Annotated[int, Field(ge=1, description="Steps between checkpoints")] = 50
    seed: Annotated[int, Field(description="Of the order of the batches and the LoRA's first weights")] = 0


def batches(rows: list[dict[str, Any]], tokenizer: Any, size: int, limit: int) -> Iterator[dict[str, "torch.Tensor"]]:
    """Training rows as calibration batches: `input_ids`, `attention_mask` and `loss_mask` [size, t]."""
    import torch

    from tasks.trainer import encode

    examples = sorted(encode(tokenizer, rows[:limit], 1024), key=lambda e: len(e.ids))
    for start in range(0, len(examples), size):
        group = examples[start : start + size]
        width = max(len(e.ids) for e in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        attention, answers = torch.zeros_like(ids), torch.zeros(len(group), width, dtype=torch.bool)
        for i, e in enumerate(group):
            ids[i, : len(e.ids)] = torch.tensor(e.ids)
            attention[i, : len(e.ids)] = 1
            answers[i, e.prompt : len(e.ids)] = True
        yield {"input_ids": ids, "attention_mask": attention, "loss_mask": answers}


def distill(
    dataset_id: str, spec: DistillSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Train a student on a frozen dataset; returns its id, path and report.

    The same dataset, spec, base and teacher give the same student: if it is there already, it is returned.

    Raises:
        SetupError: The base is no model, or no example fits into `max_length`.
    """
    from infra.database.session import session
    from infra.database.tables import Student
    from infra.engines.chat import load_tokenizer
    from tasks.curate import load

    dataset = load(dataset_id)
    base = spec.base or settings().student_base
    teacher = teacher_for(dataset.workload)
    followed = teacher if isinstance(teacher, LocalTeacher) and spec.kl_weight > 0 else None
    parents = [dataset_id, asdict(spec), model_fingerprint(base), followed and model_fingerprint(followed.path)]
    student_id = hashlib.sha256(json.dumps(parents, sort_keys=True).encode()).hexdigest()[:16]
    folder = settings().home / "students" / student_id
    with session() as db:
        if (known := db.get(Student, student_id)) and folder.exists():
            return {"student_id": student_id, "path": known.path, **known.report}

    import torch

    from tasks.trainer import Trainer, encode, teacher_logits

    torch.set_num_threads(settings().cores)
    torch.manual_seed(spec.seed)
    model = load_model(base)
    tokenizer = load_tokenizer(Path(base) if Path(base).is_dir() else base)
    rows = dataset.split("train")
    train, validation = (encode(tokenizer, part, spec.max_length) for part in (rows, dataset.split("validation")))
    if not train:
        raise SetupError(
            f"none of {len(rows)} training rows fits into max_length={spec.max_length} tokens; raise distill.max_length"
        )

    logits: dict[int, Any] = {}
    if followed and same_tokens(tokenizer, load_tokenizer(Path(followed.path))):
        name = f"teacher-{model_fingerprint(followed.path)[:12]}-{len(train)}-top{spec.top_k}.safetensors"
        logits = teacher_logits(Path(dataset.path) / name, train, followed, spec.top_k, progress)

    adapted = with_lora(model.to("cuda" if torch.cuda.is_available() else "cpu"), spec)
    work = settings().home / "students" / f"{student_id}.work"
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(adapted, spec, work, logits)
    trainer.run(train, validation, progress)

    report = {
        **prompt_tokens(tokenizer, dataset, rows), "dataset_id": dataset_id, "base": base,
        "examples": len(train), "too_long": len(rows) - len(train),
        "steps": trainer.step, "history": trainer.history, "teacher_logits": bool(logits),
    }  # fmt: skip
    manifest = {
        "workload": dataset.workload, "prefix": dataset.prefix.to_json() if dataset.prefix else None,
        "dataset_id": dataset_id, "student_id": student_id, "max_tokens": 2 * max(len(e.ids) - e.prompt for e in train),
    }  # fmt: skip
    write_student(folder, adapted, tokenizer, manifest)
    trained = Student(id=student_id, dataset_id=dataset_id, path=str(folder), report=report, spec=asdict(spec))
    trained.flow_run_id = flow_run_id
    with session() as db:
        db.merge(trained)
    shutil.rmtree(work)
    return {"student_id": student_id, "path": str(folder), **report}


def with_lora(model: Any, spec: DistillSpec) -> Any:
    """The model with a trainable LoRA on every linear layer but the head, and all else frozen."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT asks by the old name
        return get_peft_model(model, lora)


def write_student(folder: Path, adapted: Any, tokenizer: Any, manifest: dict[str, Any]) -> None:
    """The merged weights, the adapter beside them and the manifest, at once or not at all."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    adapted.save_pretrained(partial / "adapter")
    adapted.merge_and_unload(safe_merge=True).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "flywheel.json").write_text(json.dumps(manifest, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def prompt_tokens(tokenizer: Any, dataset: "Dataset", rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean tokens of a prompt as applications send it and as the student reads it, over a sample of the rows."""
    from infra.engines.chat import render

    sent, read = 0, 0
    sample = rows[:: max(1, len(rows) // 64)]
    for row in sample:
        messages, tools = row["messages"], row["tools"]
        if dataset.prefix:
            messages, tools = dataset.prefix.restore(messages)
        sent += len(render(tokenizer, messages, tools, prompt=True))
        read += len(render(tokenizer, row["messages"], row["tools"], prompt=True))
    return {"prompt_tokens_sent": round(sent / len(sample), 1), "prompt_tokens_read": round(read / len(sample), 1)}


def same_tokens(ours: Any, theirs: Any) -> bool:
    """Whether two tokenizers write the same ids and the same conversations."""
    return bool(ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template)
