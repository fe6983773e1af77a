"""What DPO and KTO share: pairs and thumbs of a dataset as tokens, and TRL's trainers kept in one folder.

A pair is a request with a better and a worse answer: a correction, a preferred or the teacher's answer beside the one
that it took the place of, or an answer that was objected to beside the latest that people wrote or praised for an equal
request. A thumb is an answer that people wrote or praised, or one that they objected to or put another in the place of.

The reference of both losses is the student as the lesson before left it. TRL keeps it as a second, frozen adapter; it
reads our tokens, not text of its own making, so that a preference is learned in the very form that is served.

It is one process that does it, also where FLYWHEEL_TORCHRUN has the lesson before learned by several. TRL would run in
them, but not by the same steps: accelerate evens out the last batch of an epoch by rows that were there before, which
are then learned twice, or leaves a process without any; the trainers average the processes' means, whatever each had of
the batch; and a base that is sharded (FSDP) would have to be sharded with both adapters, where ours stay whole.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.database.jsontext import dumps
from infra.database.policy import WEIGHTS, same
from infra.settings import SetupError
from tasks.lessons.lesson import Progress
from tasks.training.examples import Example, encode

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset

Row = dict[str, Any]
LOGGED = {"loss": "loss", "margin": "rewards/margins"}  # ours: TRL's; a batch with one kind of thumb has no margin


@dataclass(frozen=True)
class Stage:
    """What the stage is given beside the model.

    Attributes:
        examples: As `pairs` or `thumbs` gives them.
        work: The one folder that is written to.
        save_steps: Steps between checkpoints.
        seed: Of what is random.
    """

    tokenizer: Any
    examples: list[Row]
    work: Path
    save_steps: int
    seed: int
    progress: Progress | None


def pairs(dataset: "Dataset", tokenizer: Any, max_length: int) -> list[Row]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each pair; those with a side over `max_length` are left out."""
    train, disliked = dataset.split("train"), dataset.split("disliked")
    better: dict[str, Row] = {}
    for row in filter(_liked, train):
        before = better.get(asked := _asked(row))
        if before is None or row["weight"] >= before["weight"]:
            better[asked] = row
    rows = [row for row in train if row["rejected"]]
    for row in disliked:
        other = better.get(_asked(row))
        if other and not same(other["expected"], row["rejected"]):
            rows.append({**row, "expected": other["expected"]})
    chosen, rejected = (_encoded(tokenizer, rows, side, max_length) for side in ("expected", "rejected"))
    return [
        {
            "prompt_ids": one.ids[: one.prompt],
            "chosen_ids": one.ids[one.prompt :],
            "rejected_ids": rejected[n].ids[one.prompt :],
        }
        for n, one in chosen.items()
        if n in rejected
    ]


def thumbs(dataset: "Dataset", tokenizer: Any, max_length: int) -> list[Row]:
    """`prompt_ids`, `completion_ids` and `label` (True: liked) of each judged answer of at most `max_length` tokens."""
    train = dataset.split("train")
    liked = _encoded(tokenizer, [row for row in train if _liked(row)], "expected", max_length)
    worse = [row for row in (*train, *dataset.split("disliked")) if row["rejected"]]
    disliked = _encoded(tokenizer, worse, "rejected", max_length)
    return [
        {"prompt_ids": one.ids[: one.prompt], "completion_ids": one.ids[one.prompt :], "label": label}
        for label, some in ((True, liked), (False, disliked))
        for one in some.values()
    ]


def _liked(row: Row) -> bool:
    return bool(row["weight"] > WEIGHTS["nothing"])


def _asked(row: Row) -> str:
    return dumps([row["messages"], row["tools"]], sort_keys=True).decode()


def _encoded(tokenizer: Any, rows: Sequence[Row], answer: str, max_length: int) -> dict[int, Example]:
    found = encode(tokenizer, [{**row, "expected": row[answer]} for row in rows], max_length)
    return {example.row: example for example in found}


def require_trl(name: str) -> None:
    """Raises SetupError where TRL is not installed."""
    if find_spec("trl") is None:
        raise SetupError(f"distill.prefer={name} needs TRL, which is not there: pip install 'flywheel[preferences]'")


def arguments(stage: Stage) -> dict[str, Any]:
    """What both of TRL's configurations are given: nothing is written but below `work`, and nothing sent anywhere."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(stage.work), "seed": stage.seed, "save_steps": stage.save_steps, "use_cpu": not cuda,
        "bf16": cuda, "dataloader_pin_memory": cuda, "activation_checkpointing": False, "max_length": None,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_total_limit": 1,
    }  # fmt: skip


def train(trainer_of: type, config: Any, model: Any, stage: Stage) -> dict[str, Any]:
    """Train the adapter of a model by one of TRL's trainers, from the last checkpoint there is.

    Args:
        trainer_of: DPOTrainer or KTOTrainer.
        model: With the adapter as the lesson before left it, which is the reference.

    Returns:
        Steps; and over the last epoch the means of the loss and of the margin: β times how much more likely than under
        the reference the better answers have become, less the same of the worse ones, in nats.
    """
    from datasets import Dataset as Columns
    from transformers import PrinterCallback, TrainerCallback

    from tasks.students.adapters import asking_by_the_old_name  # the students import this file

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if stage.progress and logs and "loss" in logs:
                stage.progress(state.global_step, state.max_steps, f"prefer, loss {logs['loss']:.3f}")

    class Quiet(trainer_of):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # it has tokens

        def _send_telemetry(self) -> None:
            pass

    columns = Columns.from_list(stage.examples)
    with asking_by_the_old_name():
        trainer = Quiet(model, args=config, train_dataset=columns, processing_class=stage.tokenizer, callbacks=[Told()])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(stage.work))
    model.delete_adapter("ref")
    model.eval()
    last = [entry for entry in trainer.state.log_history if entry["epoch"] > config.num_train_epochs - 1]
    return {
        "steps": trainer.state.global_step,
        **{said: _mean([e[key] for e in last if key in e]) for said, key in LOGGED.items()},
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 5) if values else None


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; what is written last is the trainer's state."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda f: -int(f.name.rpartition("-")[2])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None
