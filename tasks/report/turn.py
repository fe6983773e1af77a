"""A turn of the wheel as it is on file: who was compared with whom, on what, and what came of it.

A turn has no row of its own. It is the verdicts on one dataset against the same references by the same spec, and its id
is that of the first of them: deciding again on the same scorecards is the same turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.database.session import session
from infra.database.tables import Candidate, Dataset, Promotion, Rollout, Scorecard, Student, Verdict
from infra.registry import Version
from infra.settings import SetupError
from tasks.gate.cards import cards_of
from tasks.gate.rule import INCONCLUSIVE, PROMOTE, REJECT, Card
from tasks.release import best

CHAMPION = "champion:"
RANKS = {PROMOTE: 0, INCONCLUSIVE: 1, REJECT: 2}


@dataclass(frozen=True)
class Model:
    """A teacher, a champion or a candidate, with its scorecard; a candidate with its rows as well."""

    card: Card
    verdict: Verdict | None = None
    candidate: Candidate | None = None
    student: Student | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def metrics(self) -> dict[str, Any]:
        return self.card.metrics

    @property
    def role(self) -> str:
        return self.card.subject.partition(":")[0]


@dataclass(frozen=True)
class Turn:
    """What a report is about.

    Attributes:
        models: The teacher, the champion if one served, the candidates in the order of their verdicts.
        chosen: The candidate that won, or came nearest.
        reference: What served when it was decided.
        began: How the winner came to serve: `serves`, `under way`, or empty where it does not.
    """

    id: str
    workload: str
    at: datetime
    outcome: str
    dataset: Dataset
    models: tuple[Model, ...]
    chosen: Model
    reference: Model
    began: str

    @property
    def candidates(self) -> list[Model]:
        return [model for model in self.models if model.verdict]

    @property
    def teacher(self) -> Model:
        return self.models[0]

    @property
    def champion(self) -> Model | None:
        return next((model for model in self.models if model.role == "champion"), None)

    @property
    def verdict(self) -> Verdict:
        """The chosen candidate's."""
        assert self.chosen.verdict is not None
        return self.chosen.verdict

    @property
    def spec(self) -> dict[str, Any]:
        """The gate's."""
        return self.verdict.spec

    @property
    def metric(self) -> str:
        """Its name."""
        told = self.chosen.metrics.get("metric") or self.teacher.metrics.get("metric") or {}
        return str(told.get("name", "quality"))

    @property
    def runs(self) -> list[str]:
        """MLflow's runs of the versions that its candidates are."""
        return sorted({m.verdict.mlflow_run_id for m in self.candidates if m.verdict and m.verdict.mlflow_run_id})


def key_of(verdict: Verdict) -> tuple[str, str, str]:
    """What the verdicts of one turn have in common."""
    return verdict.dataset_id, verdict.reference, json.dumps(verdict.spec, sort_keys=True)


def turns_of(db: Session, *where: Any) -> list[list[Verdict]]:
    """The verdicts of each turn, the earliest turn first."""
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in db.scalars(select(Verdict).where(*where).order_by(Verdict.created, Verdict.id)):
        found.setdefault(key_of(verdict), []).append(verdict)
    return list(found.values())


def find(verdict_id: str | None = None, workload: str | None = None) -> list[Verdict]:
    """The verdicts of the turn that one of them belongs to; without it, of the last turn.

    Raises:
        SetupError: There is none.
    """
    with session(write=False) as db:
        if verdict_id is None:
            where = [] if workload is None else [Verdict.workload == workload]
            newest = db.scalar(select(Verdict).where(*where).order_by(Verdict.created.desc(), Verdict.id).limit(1))
            if newest is None:
                whose = "" if workload is None else f" of workload {workload!r}"
                raise SetupError(f"there is no verdict{whose} to report on; `flywheel run --workload NAME` makes one")
        elif (newest := db.get(Verdict, verdict_id)) is None:
            raise SetupError(f"verdict {verdict_id!r} is unknown; `flywheel report --turns` lists those there are")
        same = turns_of(db, Verdict.dataset_id == newest.dataset_id, Verdict.reference == newest.reference)
    return next(turn for turn in same if key_of(turn[0]) == key_of(newest))


def turn_of(verdicts: Sequence[Verdict]) -> Turn:
    """A turn, by its verdicts."""
    first = verdicts[0]
    names = [part.strip() for part in first.reference.split(",")]
    with session(write=False) as db:
        dataset = db.get_one(Dataset, first.dataset_id)
        serving = _served(db, first, names)
        rows = {v.candidate_id: db.get_one(Candidate, v.candidate_id) for v in verdicts}
        students = {c.student_id: db.get_one(Student, c.student_id) for c in rows.values()}
    teacher, champion, cards = cards_of(dataset.id, serving)
    by_subject = {card.subject: card for card in cards}
    candidates = [
        Model(by_subject[f"candidate:{v.candidate_id}"], v, row, students[row.student_id])
        for v in verdicts
        if (row := rows[v.candidate_id])
    ]
    references = [Model(card) for card in (teacher, champion) if card]
    chosen, outcome = _chosen(candidates)
    with session(write=False) as db:
        began = _began(db, chosen) if outcome == PROMOTE else ""
    return Turn(
        first.id, first.workload, max(v.created for v in verdicts), outcome, dataset, (*references, *candidates),
        chosen, references[-1], began,
    )  # fmt: skip


def _chosen(candidates: Sequence[Model]) -> tuple[Model, str]:
    """The one that won, as `release` chooses it, else that which came nearest; and the turn's outcome."""
    outcomes = {model.card.subject: model.verdict.outcome for model in candidates if model.verdict}
    if passed := [model.card for model in candidates if outcomes[model.card.subject] == PROMOTE]:
        winner = best(passed).subject
        return next(model for model in candidates if model.card.subject == winner), PROMOTE
    nearest = min(
        candidates,
        key=lambda model: (RANKS[outcomes[model.card.subject]], -(model.metrics.get("quality") or 0.0), model.name),
    )
    return nearest, REJECT if set(outcomes.values()) == {REJECT} else INCONCLUSIVE


def _served(db: Session, verdict: Verdict, references: Sequence[str]) -> Version | None:
    """The version that served, as far as a scorecard can be found by it."""
    number = next((name.removeprefix(CHAMPION) for name in references if name.startswith(CHAMPION)), None)
    if number is None:
        return None
    card = db.scalar(
        select(Scorecard)
        .where(Scorecard.dataset_id == verdict.dataset_id, Scorecard.subject == f"{CHAMPION}{number}")
        .order_by(Scorecard.created.desc())
        .limit(1)
    )
    made = db.scalar(
        select(Candidate)
        .join(Verdict, Verdict.candidate_id == Candidate.id)
        .where(Verdict.workload == verdict.workload, Verdict.model_version == number)
        .limit(1)
    )
    digest = card.artifact_hash if card else made.artifact_hash if made else None
    tags = {"name": made.name} if made else {}
    return Version(verdict.workload, number, Path(), digest or "", tags)


def _began(db: Session, chosen: Model) -> str:
    """Whether the winner serves since, or was sent on its way by steps."""
    assert chosen.verdict is not None
    mine = chosen.verdict.workload, chosen.verdict.model_version
    stepped = select(Rollout.id).where(Rollout.workload == mine[0], Rollout.version == mine[1])
    moved = select(Promotion.number).where(
        Promotion.workload == mine[0], Promotion.version == mine[1], Promotion.at.is_not(None)
    )
    return "under way" if db.scalar(stepped.limit(1)) else "serves" if db.scalar(moved.limit(1)) else ""


class Said(NamedTuple):
    """An answer of a scorecard: the message, and its value by the metric (None where it says nothing of it)."""

    message: dict[str, Any]
    value: float | None


def answers_of(model: Model) -> dict[int, Said]:
    """What a model answered, by interaction; nothing where the file is gone."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    with session(write=False) as db:
        row = db.get(Scorecard, model.card.id)
    if row is None or not Path(row.path).exists():
        return {}
    rows = parquet.read_table(row.path, columns=["interaction_id", "answer", "value"]).to_pylist()
    return {row["interaction_id"]: Said(json.loads(row["answer"]), row["value"]) for row in rows}
