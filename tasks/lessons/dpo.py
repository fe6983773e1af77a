"""DPO: of two answers to a request the better one (Rafailov et al. 2023, eq. 7), by TRL's trainer.

    loss = -log σ( β · [ log π(chosen) / π_ref(chosen) - log π(rejected) / π_ref(rejected) ] )

π(y) is the probability of a whole answer given its request; π_ref is the student before this stage.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.settings import SetupError
from tasks.lessons.preferences import Row, Stage, arguments, pairs, require_trl, train

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset


@dataclass(frozen=True)
class DPO:
    """From pairs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0, description="The higher, the nearer the student stays to what it was")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="At first, in AdamW; it falls to zero")] = 2e-5
    epochs: Annotated[int, Field(ge=1, le=100, description="Passes over the pairs")] = 1
    batch_size: Annotated[int, Field(ge=1, description="Pairs in a step")] = 8

    def prepare(self, dataset: "Dataset", tokenizer: Any, max_length: int) -> list[Row]:
        """The pairs.

        Raises:
            SetupError: TRL is not installed, or there is no pair.
        """
        require_trl(self.name)
        found = pairs(dataset, tokenizer, max_length)
        if not found:
            raise SetupError(
                f"dataset {dataset.id!r} has no pair of a better and a worse answer to learn from (corrections, "
                "preferences, or a thumb down and a thumb up for equal requests); leave distill.prefer out"
            )
        return found

    def prefer(self, model: Any, stage: Stage) -> dict[str, Any]:
        """Train the model's adapter on pairs; it is left as the last step leaves it."""
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(
            **arguments(stage), beta=self.beta, learning_rate=self.learning_rate,
            num_train_epochs=self.epochs, per_device_train_batch_size=self.batch_size,
        )  # fmt: skip
        said = train(DPOTrainer, config, model, stage)
        return {"name": self.name, "pairs": len(stage.examples), **said}
