"""A causal student: a language model with an adapter, which reads what the teacher reads and writes what it writes.

What it learns from is its lesson (`lessons/`), the loop is in `training/`, adapters are in `adapters.py`; here a
dataset and a spec become the merged weights and the adapter.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.registry import ADAPTER
from infra.settings import SetupError, settings
from quant.pruning import Prune
from tasks.lessons import Learn, Logits, Prefer
from tasks.lessons.lesson import Desk, Progress
from tasks.lessons.preferences import Stage
from tasks.menu import MENU
from tasks.students.adapters import Adapter, fresh, save
from tasks.students.champion import beginning, go_on
from tasks.students.pruned import pruned, report_of
from tasks.teachers import LocalTeacher, teacher_for
from tasks.teachers.hf import load_model, model_fingerprint

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset
    from tasks.training.examples import Example
    from tasks.training.varied import Vary


@dataclass(frozen=True)
class Causal:
    """A language model with an adapter."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["causal"] = "causal"
    base: Annotated[str, Field(description="Hugging Face id or path; empty takes FLYWHEEL_STUDENT")] = ""
    prune: Annotated[
        Prune | None,
        Field(
            title="Prune",
            description="Cut out of the base before: shares to keep of its layers, heads, mlp and hidden, 1 is all",
        ),
    ] = None
    start: Annotated[
        Literal["base", "champion"], Field(description="Begin with a fresh adapter, or with that of what serves")
    ] = "base"
    adapter: Annotated[Adapter, Field(description="Kind of adapter")] = "lora"
    rank: Annotated[int, Field(ge=1, le=256, description="Of the adapter's two matrices")] = 32
    alpha: Annotated[int, Field(ge=1, description="The adapter counts alpha / rank; with rslora alpha / √rank")] = 256
    targets: Annotated[
        tuple[str, ...], Field(description="Linear layers with an adapter, as in q_proj; none named: all but the head")
    ] = ()
    embeddings: Annotated[
        bool, Field(description="Train the embeddings of the traffic's tokens, too, which a small base may hardly know")
    ] = False
    learn: Annotated[Learn, Field(discriminator="name", description="What it learns from"), MENU] = Logits()  # noqa: RUF009 (frozen)
    prefer: Annotated[
        Prefer | None,
        Field(discriminator="name", description="A stage after it, on what people liked and disliked"),
        MENU,
    ] = None
    learning_rate: Annotated[
        float, Field(gt=0, lt=1, description="Peak rate, in AdamW's measure; a base of a billion parameters wants less")
    ] = 1e-3
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Field(description="How the rate falls after the warm-up")
    ] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1, description="Share of all steps in which the rate rises")] = 0.05
    epochs: Annotated[int, Field(ge=1, le=100, description="Passes over the training rows")] = 5
    max_steps: Annotated[int, Field(ge=0, description="Stop after so many steps, however many rows; 0: no limit")] = 0
    batch_tokens: Annotated[int, Field(ge=64, description="Tokens in one step, padding included")] = 384
    hard: Annotated[
        float, Field(ge=1, description="How often to draw, after an epoch, what the student gets wrong; 1: as the rest")
    ] = 1.0
    mentions: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the argument values quoted from a question that each epoch replaces"),
    ] = 0.0
    word_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of a question's words that each epoch leaves out")
    ] = 0.0
    max_length: Annotated[int, Field(ge=16, description="Longer examples, in tokens, are left out and counted")] = 1024
    checkpoint_steps: Annotated[int, Field(ge=1, description="Steps between checkpoints")] = 50
    seed: Annotated[int, Field(description="Of the order of the batches and a fresh adapter's weights")] = 0

    def __post_init__(self) -> None:
        if self.embeddings and self.adapter == "pissa":
            raise ValueError("pissa is saved as another adapter, which leaves embeddings out: give adapter=lora")
        if self.embeddings and self.prefer:
            raise ValueError("TRL reads the head past its adapter: give embeddings or prefer, not both")
        if self.prune and self.start == "champion":
            raise ValueError("prune makes another base, which the champion's adapter does not fit: give start=base")
        if self.adapter == "pissa" and self.start == "champion":
            raise ValueError("pissa is a way to begin afresh: a champion's adapter goes on as lora, or start=base")

    @property
    def path(self) -> str:
        """Of the base."""
        return self.base or settings().student_base

    def parents(self, dataset: "Dataset") -> list[Any]:
        """Digests of what else decides the weights: base, the teacher that is followed, the adapter to begin with."""
        followed, adapter = self.followed(dataset), beginning(dataset, self).adapter
        return [
            model_fingerprint(self.path),
            followed and model_fingerprint(followed.path),
            adapter and adapter.artifact_hash,
        ]

    def followed(self, dataset: "Dataset") -> LocalTeacher | None:
        """The teacher whose distribution the lesson follows."""
        teacher = teacher_for(dataset.workload)
        return teacher if isinstance(teacher, LocalTeacher) and self.learn.follows else None

    def train(self, dataset: "Dataset", folder: Path, work: Path, progress: Progress | None) -> dict[str, Any]:
        """Train on a dataset; the student is in `folder`, the returned report says what it took.

        Raises:
            SetupError: The base is no model, no example fits into `max_length`, the champion's adapter or the
                preferences that were asked for are not to be had, or a process of several failed.
        """
        from infra.engines.chat import load_tokenizer
        from tasks.training import launch
        from tasks.training.loop import load_adapter

        several = bool(settings().torchrun)
        if self.embeddings and several and settings().shard:
            raise SetupError("embeddings are trained whole, not sharded: unset FLYWHEEL_SHARD or distill.embeddings")
        tokenizer = load_tokenizer(self.path)
        judged = self.prefer.prepare(dataset, tokenizer, self.max_length) if self.prefer else []
        report = launch.fit(self, dataset.id, work, progress) if several else self.fit(dataset, work, progress)
        adapted = self.adapted(dataset, work)
        load_adapter(adapted, work)
        if self.prefer:
            stage = Stage(tokenizer, judged, work / "prefer", self.checkpoint_steps, self.seed, progress)
            said = self.prefer.prefer(adapted, stage)
            report["prefer"] = {**said, "validation_loss": self.validated(adapted, dataset, tokenizer)}
        begun, base = beginning(dataset, self), self.put_on(dataset, work)
        made_from = {
            "base": self.path,
            "prune": self.prune and asdict(self.prune),
            "fingerprint": model_fingerprint(base),
        }
        save(adapted, folder / ADAPTER, self, work, {**made_from, "datasets": [*begun.datasets, dataset.id]})
        write(folder, adapted, tokenizer, report["max_tokens"])
        return {**report, **(report_of(Path(base)) if self.prune else {}), "start": begun.said}

    def fit(self, dataset: "Dataset", work: Path, progress: Progress | None) -> dict[str, Any]:
        """Learn the lesson, alone or as one of torchrun's processes; the best epoch's adapter is left in `work`."""
        import torch

        from infra.engines.chat import load_tokenizer
        from tasks.training.examples import encode
        from tasks.training.loop import Trainer, accelerator

        processes = accelerator(settings().shard)
        torch.set_num_threads(max(1, settings().cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
        progress = progress if processes.is_main_process else None
        tokenizer = load_tokenizer(self.path)
        rows = dataset.split("train")
        train, validation = (encode(tokenizer, part, self.max_length) for part in (rows, dataset.split("validation")))
        if not train:
            raise SetupError(
                f"none of {len(rows)} training rows fits into max_length={self.max_length} tokens; "
                "raise distill.max_length"
            )
        desk = Desk(dataset, rows, train, tokenizer, self.followed(dataset), self.seed, progress)
        with processes.main_process_first():  # what it writes, the others read
            teach, adapted = self.learn.prepare(desk), self.adapted(dataset, work, train)
        trainer = Trainer(adapted.to(processes.device), self, work, teach, processes)
        trainer.run(train, validation, progress, self.vary(rows, train, tokenizer))
        return {
            **prompt_tokens(tokenizer, dataset, rows), "base": self.path, "examples": len(train),
            "too_long": len(rows) - len(train), "steps": trainer.step, "history": trainer.history,
            "curve": trainer.curve.points, **desk.report, "processes": processes.num_processes,
            "max_tokens": 2 * max(len(e.ids) - e.prompt for e in train),
        }  # fmt: skip

    def vary(self, rows: list[dict[str, Any]], train: "list[Example]", tokenizer: Any) -> "Vary | None":
        """What each epoch sees of the training rows, where it differs."""
        from tasks.training.examples import encode
        from tasks.training.varied import change, varying

        if not (self.mentions or self.word_dropout):
            return None
        changed = change(rows, self.mentions, self.word_dropout, self.seed)
        return varying(changed, train, lambda varied: encode(tokenizer, varied, self.max_length))

    def validated(self, adapted: Any, dataset: "Dataset", tokenizer: Any) -> float:
        """The loss of imitation on the validation rows, in nats a token."""
        from tasks.training.examples import encode, schedule
        from tasks.training.loop import imitation_loss

        examples = encode(tokenizer, dataset.split("validation") or dataset.split("train")[:64], self.max_length)
        groups = schedule(examples, self.batch_tokens, 0, 0, packed=False)
        return round(imitation_loss(adapted, groups).mean.item(), 5)

    def put_on(self, dataset: "Dataset", work: Path) -> str:
        """Where that lies which the adapter is put on: the base, or what is left of it."""
        return str(pruned(self.path, self.prune, dataset, work)) if self.prune else self.path

    def adapted(self, dataset: "Dataset", work: Path, train: "list[Example] | None" = None) -> Any:
        """The base with the adapter that training starts from.

        Args:
            train: The training rows, where they are encoded already.
        """
        model, champion = load_model(self.put_on(dataset, work)), beginning(dataset, self).adapter
        model.name_or_path = self.path  # what the adapter names, and not a folder that goes when it is trained
        if champion:
            return go_on(model, self, champion, model_fingerprint(self.path))
        return fresh(model, self, work, self.tokens(dataset, train))

    def tokens(self, dataset: "Dataset", train: "list[Example] | None") -> list[int]:
        """Whose embeddings are trained: what the training rows are made of, ascending."""
        from infra.engines.chat import load_tokenizer
        from tasks.training.examples import encode

        if not self.embeddings:
            return []
        if train is None:
            train = encode(load_tokenizer(self.path), dataset.split("train"), self.max_length)
        return sorted({token for example in train for token in example.ids})


def write(folder: Path, adapted: Any, tokenizer: Any, max_tokens: int) -> None:
    """The merged weights and what an engine has to know."""
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
