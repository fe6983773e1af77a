"""Verdict → version: every candidate that the gate was asked about is a version of the workload's registered model.

The winner's comes first: on its way to serve it waits for no other's bytes. What did not pass shares its files with the
candidate's and the student's folders where it can; what passed has its own, since it may serve any day.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import SetupError
from tasks.gate.rule import PROMOTE, Card, Judgement
from tasks.model_card import Made, Split, model_card

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Progress = Callable[[int, int, str], None]


def register(
    dataset: Any,
    verdicts: Sequence[tuple[Card, Judgement]],
    winner: Card | None,
    references: Sequence[Card],
    flow_run_id: str | None,
    progress: Progress | None,
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """(version, MLflow run id) of each candidate, by its subject; and a line for each that cannot be registered.

    Args:
        dataset: The row that they were scored on.

    Raises:
        SetupError: The files of one that passed are not those that were scored, or MLflow refuses.
    """
    found, lost = {}, []
    for done, (card, judgement) in enumerate(sorted(verdicts, key=lambda verdict: verdict[0] is not winner)):
        if progress:
            progress(done, len(verdicts), "register")
        try:
            found[card.subject] = _version(dataset, card, judgement, references, flow_run_id)
        except Changed as problem:
            if judgement.outcome == PROMOTE:
                raise
            lost.append(f"{card.name} is not registered: {problem}")
    return found, lost


class Changed(SetupError):
    """A candidate's files are no longer those that were scored."""


def _version(
    dataset: Any, card: Card, judgement: Judgement, references: Sequence[Card], flow_run_id: str | None
) -> tuple[str, str]:
    from infra import registry
    from infra.database.session import session
    from infra.database.tables import Candidate, Student

    with session(write=False) as db:
        candidate = db.get_one(Candidate, card.subject.partition(":")[2])
        student = db.get_one(Student, candidate.student_id)
        made = Made(
            dataset.workload, candidate.name, dataset.id, candidate.artifact_hash, _splits(db, dataset.id),
            dataset.report.get("feedback", {}), _flat(student.spec), _flat(candidate.spec),
        )  # fmt: skip
    folder, adapter = Path(candidate.path), Path(student.path) / registry.ADAPTER
    if not _intact(folder, candidate.artifact_hash):
        known = registry.registered(dataset.workload, candidate.artifact_hash)
        if known and judgement.outcome != PROMOTE:
            return known
        raise Changed(f"candidate {candidate.id} is no longer what was scored; remove {folder} and quantize again")
    tags = {
        "name": candidate.name, "dataset_id": dataset.id, "student_id": candidate.student_id,
        "candidate_id": candidate.id, "reference": names(references), "flow_run_id": flow_run_id or "",
        registry.VERDICT: judgement.outcome,
    }  # fmt: skip
    numbers = {k: float(v) for k, v in card.metrics.items() if isinstance(v, int | float)}
    overall = judgement.findings[0]
    held_against = {reference.name: reference.metrics for reference in references}
    compared = {"difference": overall.difference, "difference_low": overall.low, "cost": card.cost}
    return registry.register(
        dataset.workload,
        folder,
        metrics=numbers | {k: v for k, v in compared.items() if v is not None},
        tags=tags,
        parameters=_flat(candidate.spec),
        run_name=candidate.name,
        card=model_card(made, card.metrics, held_against, judgement.outcome, judgement.reasons),
        data=registry.Data(dataset.id, Path(dataset.path)),
        documents={"scorecard.json": card.metrics, "verdict.json": {"reasons": judgement.reasons}},
        adapter=adapter if adapter.is_dir() else None,
        shared=judgement.outcome != PROMOTE,
    )


def _intact(folder: Path, digest: str) -> bool:
    from infra import registry

    try:
        return registry.artifact_hash(folder) == digest
    except SetupError:  # it has no files
        return False


def names(references: Sequence[Card]) -> str:
    return ", ".join(card.subject for card in references)


def _splits(db: "Session", dataset_id: str) -> list[Split]:
    """How many interactions each split of a dataset has, and the time that they are from."""
    from sqlalchemy import func, select

    from infra.database.tables import DatasetItem, Interaction

    counted = func.count(), func.min(Interaction.at), func.max(Interaction.at)
    query = select(DatasetItem.split, *counted).join(Interaction, Interaction.id == DatasetItem.interaction_id)
    found = db.execute(query.where(DatasetItem.dataset_id == dataset_id).group_by(DatasetItem.split))
    return sorted((Split(*row) for row in found), key=lambda split: split.last)


def _flat(spec: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested spec as dotted names: {"method": {"bits": 4}} → {"method.bits": 4}."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found
