"""KTO: answers that people liked, and others that they did not (Ethayarajh et al. 2024, eq. 7 and 8), by TRL's trainer.

    r(y) = log π(y) / π_ref(y),   z = max(0, mean of r over requests with each other's answers)
    loss = λ_liked · (1 - σ(β · [r(y) - z]))      of a liked answer
           λ_disliked · (1 - σ(β · [z - r(y)]))   of a disliked one

The rarer kind weighs as much more as it is rarer, so that both weigh the same in all. π_ref is the student before this
stage. The order is drawn once, for z needs the batches to be known.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import SetupError
from tasks.lessons.preferences import Row, Stage, arguments, require_trl, thumbs, train

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset


@dataclass(frozen=True)
class KTO:
    """From thumbs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["kto"] = "kto"
    beta: Annotated[float, Field(gt=0, description="The higher, the nearer the student stays to what it was")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="At first, in AdamW; it falls to zero")] = 2e-5
    epochs: Annotated[int, Field(ge=1, le=100, description="Passes over the answers")] = 1
    batch_size: Annotated[int, Field(ge=2, description="Answers in a step")] = 16

    def prepare(self, dataset: "Dataset", tokenizer: Any, max_length: int) -> list[Row]:
        """The judged answers.

        Raises:
            SetupError: TRL is not installed, or all answers that were judged were judged alike.
        """
        require_trl(self.name)
        found = thumbs(dataset, tokenizer, max_length)
        liked = sum(row["label"] for row in found)
        if not 0 < liked < len(found):
            raise SetupError(
                f"dataset {dataset.id!r} has {liked} answers that people liked and {len(found) - liked} that they did "
                "not, and KTO needs both; leave distill.prefer out"
            )
        return found

    def prefer(self, model: Any, stage: Stage) -> dict[str, Any]:
        """Train the model's adapter on judged answers; it is left as the last step leaves it."""
        from trl import KTOConfig, KTOTrainer

        liked = sum(row["label"] for row in stage.examples)
        disliked = len(stage.examples) - liked
        config = KTOConfig(
            **arguments(stage), beta=self.beta, learning_rate=self.learning_rate,
            num_train_epochs=self.epochs, per_device_train_batch_size=self.batch_size,
            desirable_weight=max(1.0, disliked / liked), undesirable_weight=max(1.0, liked / disliked),
        )  # fmt: skip
        drawn = Random(stage.seed).sample(stage.examples, len(stage.examples))
        said = train(KTOTrainer, config, model, replace(stage, examples=exchanged(drawn, self.batch_size)))
        return {"name": self.name, "liked": liked, "disliked": disliked, **said}


def exchanged(examples: list[Row], batch_size: int) -> list[Row]:
    """The answers with `KL_completion_ids`: within each batch every request has the answer to the one before it."""
    found: list[Row] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        others = [batch[-1], *batch[:-1]]
        found += [
            {**row, "KL_completion_ids": other["completion_ids"]} for row, other in zip(batch, others, strict=True)
        ]
    return found
