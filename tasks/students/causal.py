"""A causal student: a language model with a LoRA, which reads what the teacher reads and writes what it writes.

What it learns from is its lesson (`lessons/`), the loop is in `training/`; here a dataset and a spec become the merged
weights and the adapter.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import SetupError, settings
from tasks.lessons import Learn, Logits
from tasks.lessons.lesson import Desk, Progress
from tasks.teachers import LocalTeacher, teacher_for
from tasks.teachers.hf import load_model, model_fingerprint

if TYPE_CHECKING:
    from tasks.frozen import Dataset


@dataclass(frozen=True)
class Causal:
    """A language model with a LoRA."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["causal"] = "causal"
    base: Annotated[str, Field(description="Hugging Face id or path; empty takes FLYWHEEL_STUDENT")] = ""
    rank: Annotated[int, Field(ge=1, le=256, description="LoRA rank r")] = 32
    alpha: Annotated[int, Field(ge=1, description="LoRA alpha")] = 256
    learn: Annotated[Learn, Field(discriminator="name", description="What it learns from")] = Logits()  # noqa: RUF009 (frozen)
    learning_rate: Annotated[
        float, Field(gt=0, lt=1, description="Peak rate, in AdamW's measure; a base of a billion parameters wants less")
    ] = 1e-3
    epochs: Annotated[int, Field(ge=1, le=100, description="Passes over the training rows")] = 5
    max_steps: Annotated[int, Field(ge=0, description="Stop after so many steps, however many rows; 0: no limit")] = 0
    batch_tokens: Annotated[int, Field(ge=64, description="Tokens in one step, padding included")] = 384
    hard: Annotated[
        float, Field(ge=1, description="How often to draw, after an epoch, what the student gets wrong; 1: as the rest")
    ] = 1.0
    max_length: Annotated[int, Field(ge=16, description="Longer examples, in tokens, are left out and counted")] = 1024
    checkpoint_steps: Annotated[int, Field(ge=1, description="Steps between checkpoints")] = 50
    seed: Annotated[int, Field(description="Of the order of the batches and the LoRA's first weights")] = 0

    @property
    def path(self) -> str:
        """Of the base."""
        return self.base or settings().student_base

    def parents(self, dataset: "Dataset") -> list[Any]:
        """Fingerprints of the base and of the teacher that is followed: what else decides the weights."""
        followed = self.followed(dataset)
        return [model_fingerprint(self.path), followed and model_fingerprint(followed.path)]

    def followed(self, dataset: "Dataset") -> LocalTeacher | None:
        """The teacher whose distribution the lesson follows."""
        teacher = teacher_for(dataset.workload)
        return teacher if isinstance(teacher, LocalTeacher) and self.learn.follows else None

    def train(self, dataset: "Dataset", folder: Path, work: Path, progress: Progress | None) -> dict[str, Any]:
        """Train on a dataset; the student is in `folder`, the returned report says what it took.

        Raises:
            SetupError: The base is no model, or no example fits into `max_length`.
        """
        import torch

        from infra.engines.chat import load_tokenizer
        from tasks.training.examples import encode
        from tasks.training.loop import Trainer

        torch.set_num_threads(settings().cores)
        torch.manual_seed(self.seed)
        model = load_model(self.path)
        tokenizer = load_tokenizer(Path(self.path) if Path(self.path).is_dir() else self.path)
        rows = dataset.split("train")
        train, validation = (encode(tokenizer, part, self.max_length) for part in (rows, dataset.split("validation")))
        if not train:
            raise SetupError(
                f"none of {len(rows)} training rows fits into max_length={self.max_length} tokens; "
                "raise distill.max_length"
            )
        desk = Desk(dataset, rows, train, tokenizer, self.followed(dataset), self.seed, progress)
        teach = self.learn.prepare(desk)
        adapted = with_lora(model.to("cuda" if torch.cuda.is_available() else "cpu"), self)
        trainer = Trainer(adapted, self, work, teach)
        trainer.run(train, validation, progress)
        write(folder, adapted, tokenizer, 2 * max(len(e.ids) - e.prompt for e in train))
        return {
            **prompt_tokens(tokenizer, dataset, rows), "base": self.path, "examples": len(train),
            "too_long": len(rows) - len(train), "steps": trainer.step, "history": trainer.history,
            **desk.report,
        }  # fmt: skip


def with_lora(model: Any, spec: Causal) -> Any:
    """The model with a trainable LoRA on every linear layer but the head, and all else frozen."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT asks by the old name
        return get_peft_model(model, lora)


def write(folder: Path, adapted: Any, tokenizer: Any, max_tokens: int) -> None:
    """The merged weights, the adapter beside them, and what an engine has to know."""
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload(safe_merge=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "flywheel.json").write_text(json.dumps({"max_tokens": max_tokens}))


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
