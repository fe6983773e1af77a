"""Scorecards → verdict → registry: the gate is asked about each candidate, and what passes is registered.

The reference is the champion if there is one, else the teacher. Each champion is thus held against the one before it:
margins may add up over many turns of the wheel.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.settings import SetupError
from tasks.evaluate import candidates_of
from tasks.gate import INCONCLUSIVE, PROMOTE, REJECT, Card, Judgement, judge
from tasks.gate import GateSpec as GateSpec
from tasks.model_card import Made, Split, model_card
from tasks.scorecards import read_items

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Progress = Callable[[int, int, str], None]


def release(
    dataset_id: str, spec: GateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Gate the candidates of a dataset; register those that pass, and let the cheapest of them serve.

    Each candidate gets a verdict with its reasons, which is stored before the alias moves. Doing it again on the same
    scorecards changes nothing.

    Returns:
        workload, dataset_id, outcome, reference, winner, version, reasons, margin, confidence, and a row a model.

    Raises:
        SetupError: The dataset is unknown or has no candidates, or MLflow cannot be reached.
    """
    from infra import promotions, registry
    from infra.database.session import session
    from infra.database.tables import Dataset

    with session(write=False) as db:
        dataset = db.get(Dataset, dataset_id)
    if dataset is None:
        raise SetupError(f"dataset {dataset_id!r} is unknown; `flywheel curate` makes one and prints its id")
    if not candidates_of(dataset_id):
        raise SetupError(
            f"dataset {dataset_id} has no candidates; `flywheel distill` and `flywheel quantize` make them"
        )
    serving = registry.champion(dataset.workload)
    teacher, champion, candidates = _cards(dataset_id, serving)
    reference = champion or teacher
    verdicts = [(card, judge(card, reference, spec)) for card in candidates]
    passed = [card for card, judgement in verdicts if judgement.outcome == PROMOTE]
    winner = min(passed, key=_dearness) if passed else None
    versions: dict[str, tuple[str, str]] = {}
    for done, (card, judgement) in enumerate(verdicts):
        if progress:
            progress(done, len(verdicts), "register")
        if card in passed:
            versions[card.subject] = _register(dataset.workload, dataset_id, card, reference, judgement, flow_run_id)
    _store_verdicts(dataset.workload, dataset_id, verdicts, reference, versions, spec, flow_run_id)
    if winner:
        reason = f"{winner.name} passed the gate against {reference.name}"
        promotions.promote(dataset.workload, versions[winner.subject][0], "release", reason, flow_run_id)
    outcomes = [judgement.outcome for _, judgement in verdicts]
    outcome = PROMOTE if winner else REJECT if set(outcomes) == {REJECT} else INCONCLUSIVE
    return {
        "workload": dataset.workload, "dataset_id": dataset_id, "outcome": outcome, "reference": reference.subject,
        "winner": winner.name if winner else None, "version": versions[winner.subject][0] if winner else None,
        "reasons": [f"{card.name}: {j.outcome}; {reason}" for card, j in verdicts for reason in j.reasons],
        "margin": spec.margin, "confidence": spec.confidence,
        "rows": [_row(card, None) for card in (teacher, champion) if card] + [_row(*verdict) for verdict in verdicts],
    }  # fmt: skip


def rollback(workload: str, *, progress: Progress | None = None, flow_run_id: str | None = None) -> dict[str, Any]:
    """Give the previous champion its place back.

    Raises:
        SetupError: There is none.
    """
    from infra import promotions

    champion, previous = promotions.rollback(workload, "asked for", flow_run_id)
    return {"workload": workload, "champion": champion, "previous": previous}


def newest_dataset(workload: str) -> str:
    """Id of the newest dataset of a workload.

    Raises:
        SetupError: There is none; names the workloads that have one.
    """
    from sqlalchemy import select

    from infra.database.session import session
    from infra.database.tables import Dataset

    with session(write=False) as db:
        query = select(Dataset.id).where(Dataset.workload == workload).order_by(Dataset.created.desc()).limit(1)
        if newest := db.scalar(query):
            return newest
        known = sorted(db.scalars(select(Dataset.workload).distinct()))
    have = f"those with a dataset are {', '.join(map(repr, known))}" if known else "no workload has one yet"
    raise SetupError(f"workload {workload!r} has no dataset; {have}; `flywheel curate --workload NAME` makes one")


def _cards(dataset_id: str, serving: Any | None) -> tuple[Card, Card | None, list[Card]]:
    """The newest scorecards on a dataset: the teacher's, the champion's if one serves, the candidates'."""
    from sqlalchemy import select

    from infra.database.session import session
    from infra.database.tables import Candidate, Scorecard

    with session(write=False) as db:
        query = select(Scorecard).where(Scorecard.dataset_id == dataset_id).order_by(Scorecard.created, Scorecard.id)
        found = list(db.scalars(query))
        made = [db.get_one(Candidate, candidate_id) for candidate_id in reversed(candidates_of(dataset_id))]
    newest = {card.subject: card for card in found}
    by_files = {card.artifact_hash: card for card in found if card.artifact_hash}
    basis = Basis.of(newest["teacher"].metrics if "teacher" in newest else {})
    teacher = _card("teacher", "the teacher", newest.get("teacher"), basis)
    champion = None
    if serving is not None:
        # The same files answer the same, whatever they were called when they were scored.
        subject = f"champion:{serving.version}"
        name = f"champion {serving.version} ({serving.tags.get('name', 'unnamed')})"
        champion = _card(subject, name, by_files.get(serving.artifact_hash), basis)
    names = [candidate.name for candidate in made]
    cards = []
    for candidate in made:
        same = candidate.name if names.count(candidate.name) == 1 else f"{candidate.name} · {candidate.id[:4]}"
        row = newest.get(f"candidate:{candidate.id}")
        stale = row is not None and row.artifact_hash != candidate.artifact_hash
        cards.append(_card(f"candidate:{candidate.id}", same, None if stale else row, basis))
    return teacher, champion, cards


class Basis(NamedTuple):
    """What a request costs the teacher.

    Attributes:
        machine: Seconds of this machine; None where it is an endpoint or was not asked.
        waited: The same, or in its place the latency, which says what is cheap to leave to it, not what it costs.
    """

    machine: float | None
    waited: float

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> "Basis":
        machine = metrics.get("seconds_per_request")
        return cls(machine, (metrics.get("latency_p50_ms") or 0.0) / 1000 if machine is None else machine)


def _card(subject: str, name: str, row: Any | None, basis: Basis) -> Card:
    """A scorecard's row with its items; what is not there is said, not raised: the gate fails closed."""
    if row is None:
        return Card(subject, name, missing="has no scorecard on this dataset; run `flywheel evaluate`")
    metrics = dict(row.metrics)
    name = metrics["name"] if subject == "teacher" else name
    seconds = metrics.get("seconds_per_request")
    if seconds is not None:
        seconds += (metrics.get("abstained") or 0.0) * basis.waited
    cost = seconds / basis.machine if seconds is not None and basis.machine else None
    if not Path(row.path).exists():
        lost = f"has lost its items ({row.path}); evaluate again"
        return Card(subject, name, metrics, (), seconds, cost, lost)
    return Card(subject, name, metrics, tuple(read_items(Path(row.path))), seconds, cost)


def _dearness(card: Card) -> tuple[float, float, str]:
    size = card.metrics.get("bytes")
    return (
        float("inf") if card.seconds is None else card.seconds,
        float("inf") if size is None else size,
        card.subject,
    )


def _register(
    workload: str, dataset_id: str, card: Card, reference: Card, judgement: Judgement, flow_run_id: str | None
) -> tuple[str, str]:
    """(version, MLflow run id) of a candidate that passed; its files must still be those that were scored."""
    from infra import registry
    from infra.database.session import session
    from infra.database.tables import Candidate, Dataset, Student

    with session(write=False) as db:
        candidate = db.get_one(Candidate, card.subject.partition(":")[2])
        student, dataset = db.get_one(Student, candidate.student_id), db.get_one(Dataset, dataset_id)
        adapter = Path(student.path) / registry.ADAPTER
        made = Made(
            workload, candidate.name, dataset_id, candidate.artifact_hash, _splits(db, dataset_id),
            dataset.report.get("feedback", {}), _flat(student.spec), _flat(candidate.spec),
        )  # fmt: skip
    folder = Path(candidate.path)
    if registry.artifact_hash(folder) != candidate.artifact_hash:
        raise SetupError(f"candidate {candidate.id} is no longer what was scored; remove {folder} and quantize again")
    tags = {
        "name": candidate.name, "dataset_id": dataset_id, "student_id": candidate.student_id,
        "candidate_id": candidate.id, "reference": reference.subject, "verdict": judgement.outcome,
        "flow_run_id": flow_run_id or "",
    }  # fmt: skip
    numbers = {k: float(v) for k, v in card.metrics.items() if isinstance(v, int | float)}
    overall = judgement.findings[0]
    compared = {"difference": overall.difference, "difference_low": overall.low, "cost": card.cost}
    return registry.register(
        workload,
        folder,
        metrics=numbers | {k: v for k, v in compared.items() if v is not None},
        tags=tags,
        parameters=_flat(candidate.spec),
        run_name=candidate.name,
        card=model_card(made, card.metrics, {reference.name: reference.metrics}, judgement.outcome, judgement.reasons),
        data=registry.Data(dataset_id, Path(dataset.path)),
        documents={"scorecard.json": card.metrics, "verdict.json": {"reasons": judgement.reasons}},
        adapter=adapter if adapter.is_dir() else None,
    )


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


def _store_verdicts(
    workload: str,
    dataset_id: str,
    verdicts: Sequence[tuple[Card, Judgement]],
    reference: Card,
    versions: Mapping[str, tuple[str, str]],
    spec: GateSpec,
    flow_run_id: str | None,
) -> None:
    from infra.database.session import session
    from infra.database.tables import Verdict

    with session() as db:
        for card, judgement in verdicts:
            version, run_id = versions.get(card.subject, (None, None))
            parents = json.dumps([dataset_id, card.subject, reference.subject, asdict(spec)], sort_keys=True)
            db.merge(
                Verdict(
                    id=hashlib.sha256(parents.encode()).hexdigest()[:16], workload=workload, dataset_id=dataset_id,
                    candidate_id=card.subject.partition(":")[2], reference=reference.subject,
                    outcome=judgement.outcome, model_version=version, mlflow_run_id=run_id, spec=asdict(spec),
                    reasons={"reasons": judgement.reasons, "findings": [asdict(f) for f in judgement.findings]},
                    flow_run_id=flow_run_id,
                )
            )  # fmt: skip


def _row(card: Card, judgement: Judgement | None) -> dict[str, Any]:
    numbers = ("quality", "low", "high", "n", "bytes", "tokens_per_second", "latency_p50_ms", "abstained")
    first = judgement.findings[0] if judgement else None
    return {
        "subject": card.subject, "name": card.name, **{key: card.metrics.get(key) for key in numbers},
        "cost": card.cost, "outcome": judgement.outcome if judgement else None,
        "difference": first.difference if first else None, "bound": first.low if first else None,
    }  # fmt: skip


def scorecard_table(result: dict[str, Any]) -> list[dict[str, str]]:
    """The models of a release as rows to be read; the share that the teacher answers where there is any."""
    abstains = any(row["abstained"] for row in result["rows"])
    return [
        {
            "model": row["name"],
            "quality [95 % CI]": _shown(row, "{quality:.1%} [{low:.1%}, {high:.1%}]", "quality"),
            "bytes": _bytes(row["bytes"]),
            "tokens/s": _shown(row, "{tokens_per_second:,.0f}", "tokens_per_second"),
            "p50 ms": _shown(row, "{latency_p50_ms:.0f}", "latency_p50_ms"),
            "cost per 1,000 (teacher 1)": _shown(row, "{cost:.2f}", "cost"),
            **({"to the teacher": _shown(row, "{abstained:.1%}", "abstained")} if abstains else {}),
            "verdict": row["outcome"] or ("reference" if row["subject"] == result["reference"] else ""),
        }
        for row in result["rows"]
    ]


def verdict_markdown(result: dict[str, Any]) -> str:
    """The verdict and its reasons, to be read in a terminal and as Markdown alike."""
    asked = f"margin {100 * result['margin']:g} points, confidence {result['confidence']:.0%}"
    happened = {
        PROMOTE: f"{result['winner']} serves as version {result['version']}",
        REJECT: f"no candidate is good enough; what served goes on serving ({result['reference']})",
        INCONCLUSIVE: f"nothing is shown either way; what served goes on serving ({result['reference']})",
    }[result["outcome"]]
    lines = [
        f"**{result['outcome']}** of {result['workload']}: {happened} ({asked}, dataset {result['dataset_id']})",
        "",
    ]
    return "\n".join(lines + [f"- {reason}" for reason in result["reasons"]])


def _shown(row: dict[str, Any], template: str, key: str) -> str:
    return "n/a" if row[key] is None else template.format(**row)


def _bytes(count: int | None) -> str:
    """Decimal units, as disks and downloads are sold: 2,400,000 → 2.4 MB."""
    if count is None:
        return "n/a"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
