"""Scorecards as the gate reads them: those of the teacher, the champion and the candidates on one dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks.evaluate import candidates_of
from tasks.gate.rule import Card
from tasks.scoring.scorecards import read_items


def cards_of(dataset_id: str, serving: Any | None) -> tuple[Card, Card | None, list[Card]]:
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
        usd: What 1,000 requests cost; None where there is no price.
    """

    machine: float | None
    waited: float
    usd: float | None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> "Basis":
        machine = metrics.get("seconds_per_request")
        waited = (metrics.get("latency_p50_ms") or 0.0) / 1000 if machine is None else machine
        return cls(machine, waited, metrics.get("usd_per_1000"))

    def relative(self, seconds: float | None, usd: float | None) -> float | None:
        """What a model costs over what the teacher does: in USD where both are known, else in machine seconds."""
        if usd is not None and self.usd:
            return usd / self.usd
        return seconds / self.machine if seconds is not None and self.machine else None


def _card(subject: str, name: str, row: Any | None, basis: Basis) -> Card:
    """A scorecard's row with its items; what is not there is said, not raised: the gate fails closed."""
    if row is None:
        return Card(subject, name, missing="has no scorecard on this dataset; run `flywheel evaluate`")
    metrics = dict(row.metrics)
    name = metrics["name"] if subject == "teacher" else name
    seconds = metrics.get("seconds_per_request")
    if seconds is not None:
        seconds += (metrics.get("abstained") or 0.0) * basis.waited
    cost = basis.relative(seconds, metrics.get("usd_per_1000"))
    if not Path(row.path).exists():
        lost = f"has lost its items ({row.path}); evaluate again"
        return Card(subject, name, metrics, (), seconds, cost, lost, row.id)
    return Card(subject, name, metrics, tuple(read_items(Path(row.path))), seconds, cost, id=row.id)
