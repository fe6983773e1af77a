"""The champion's adapter, where a student begins with it and not with the base.

An adapter is gone on with only on the base, and in the shape, that it was trained in. And not where it was trained on
what the student will be measured by: then the student begins with the base, and its report says why. That compares
interactions; a holdout item that is merely near one that the champion learned is not noticed, and such an item tells
as little of the student as it tells of the champion it is held against.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from infra import registry
from infra.database.session import session
from infra.database.tables import DatasetItem
from infra.settings import SetupError
from tasks.students.adapters import MANIFEST, asking_by_the_old_name, layers

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset
    from tasks.students.causal import Causal


@dataclass(frozen=True)
class Beginning:
    """Where a student begins.

    Attributes:
        said: As the report has it.
        adapter: The champion's; None where the adapter is a fresh one.
        datasets: What that adapter has been trained on already.
    """

    said: str
    adapter: registry.Version | None = None
    datasets: tuple[str, ...] = ()


def beginning(dataset: "Dataset", spec: "Causal") -> Beginning:
    """Where a student of this dataset and spec begins.

    Raises:
        SetupError: The champion was registered without an adapter.
    """
    if spec.start == "base":
        return Beginning("base")
    adapter = registry.champion_adapter(dataset.workload)
    if adapter is None:
        return Beginning("base: nothing serves yet")
    before = tuple(json.loads((adapter.folder / MANIFEST).read_text())["datasets"])
    if seen := learned(before, dataset.id):
        return Beginning(f"base: champion {adapter.version} has learned {seen} interactions that are held out now")
    return Beginning(f"champion {adapter.version}", adapter, before)


def learned(before: tuple[str, ...], dataset_id: str) -> int:
    """How many interactions that a dataset holds out were learned from in datasets before it."""
    held, old = aliased(DatasetItem), aliased(DatasetItem)
    both = select(func.count(held.interaction_id.distinct())).join(old, old.interaction_id == held.interaction_id)
    measured = both.where(held.dataset_id == dataset_id, held.split == "holdout")
    with session(write=False) as db:
        return db.scalar(measured.where(old.dataset_id.in_(before), old.split != "holdout")) or 0


def go_on(model: Any, spec: "Causal", champion: registry.Version, base: str) -> Any:
    """The model with the champion's adapter, trainable.

    Args:
        base: Fingerprint of the model.

    Raises:
        SetupError: The adapter is one of another base or another shape; names both.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(champion.folder)
    manifest = json.loads((champion.folder / MANIFEST).read_text())
    kind = "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    theirs = {
        "adapter": kind, "rank": config.r, "alpha": config.lora_alpha, "targets": _last(config.target_modules),
        "embeddings": bool(config.trainable_token_indices),
    }  # fmt: skip
    ours = {
        "adapter": spec.adapter, "rank": spec.rank, "alpha": spec.alpha, "targets": _last(layers(model, spec)),
        "embeddings": spec.embeddings,
    }  # fmt: skip
    differ = [f"{name} {theirs[name]} and not {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if manifest["fingerprint"] != base:
        whose = f"{'a pruned ' if manifest.get('prune') else ''}{manifest['base']}"
        differ.append(f"base {whose} ({manifest['fingerprint'][:12]}) and not {spec.path} ({base[:12]})")
    if differ:
        raise SetupError(
            f"the adapter of champion {champion.version} of {champion.workload!r} has {', '.join(differ)}; "
            "give distill the same, or distill.start=base"
        )
    with asking_by_the_old_name():
        return PeftModel.from_pretrained(model, champion.folder, is_trainable=True)


def _last(names: Any) -> str:
    return ",".join(sorted({name.rpartition(".")[2] for name in names}))
