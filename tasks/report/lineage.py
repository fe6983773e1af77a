"""From interactions to the version: each thing that was made of the one before, with its id, its hash and its spec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import func, select

from infra.database.session import session
from infra.database.tables import DatasetItem, Interaction, Promotion, Scorecard
from tasks.gate.rule import PROMOTE
from tasks.report.numbers import count, size
from tasks.report.turn import Turn

HIDDEN = ("prefix", "files", "history", "curve")


class Made(NamedTuple):
    """A link of the chain: facts are (name, value); spec and more are folded JSON; `gone` says what is missing."""

    what: str
    said: str
    facts: list[tuple[str, str]]
    documents: list[tuple[str, str]]
    gone: str = ""


def lineage(turn: Turn) -> list[Made]:
    """The chain, its beginning first."""
    return [
        _interactions(turn),
        _dataset(turn),
        _student(turn),
        _candidate(turn),
        _scorecard(turn),
        _verdict(turn),
        _version(turn),
    ]


def _interactions(turn: Turn) -> Made:
    mine = select(DatasetItem.interaction_id).where(DatasetItem.dataset_id == turn.dataset.id)
    with session(write=False) as db:
        query = select(func.count(), func.min(Interaction.at), func.max(Interaction.at))
        n, first, last = db.execute(query.where(Interaction.id.in_(mine))).one()
        models = db.execute(
            select(Interaction.model, func.count()).where(Interaction.id.in_(mine)).group_by(Interaction.model)
        ).all()
    forgotten = turn.dataset.report.get("forgotten")
    gone = f"{forgotten['count']:,} were erased since" if forgotten else ""
    when = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" if first else "none are left"
    told = sorted(((str(model or "not named"), n) for model, n in models), key=lambda one: (-one[1], one[0]))
    answered = [("answered by", ", ".join(f"{model} ({n:,})" for model, n in told[:4]))] if told else []
    return Made("Interactions", f"{count(n)}, {when}", answered, [], gone)


def _dataset(turn: Turn) -> Made:
    row, report = turn.dataset, turn.dataset.report
    parts = [f"{report[part]:,} {said}" for part, said in SPLITS.items() if report.get(part) is not None]
    facts = [("id", row.id), *((name, digest[:16]) for name, digest in report.get("files", {}).items())]
    if report.get("feedback"):
        facts.append(("feedback used", ", ".join(f"{n:,} {rule}" for rule, n in report["feedback"].items())))
    return Made("Dataset", ", ".join(parts), facts, _documents(row.spec, report), _gone(row.path))


SPLITS = {"train": "to train", "validation": "to validate", "holdout": "held out", "disliked": "disliked"}


def _student(turn: Turn) -> Made:
    row = turn.chosen.student
    assert row is not None
    facts = [("id", row.id), *((k, str(row.report[k])) for k in ("base", "examples", "steps") if k in row.report)]
    return Made("Student", str(row.spec.get("name", "")), facts, _documents(row.spec, row.report), _gone(row.path))


def _candidate(turn: Turn) -> Made:
    row = turn.chosen.candidate
    assert row is not None
    facts = [("id", row.id), ("sha256 of its files", row.artifact_hash)]
    said = f"{row.name}, {row.format}, {size(turn.chosen.metrics.get('bytes') or row.size)}"
    return Made("Candidate", said, facts, _documents(row.spec), _gone(row.path))


def _scorecard(turn: Turn) -> Made:
    card = turn.chosen.card
    with session(write=False) as db:
        row = db.get(Scorecard, card.id) if card.id else None
    if row is None:
        return Made("Scorecard", "", [], [], "there is none on file")
    said = f"{turn.metric}, {count(card.metrics.get('n'))} items"
    facts = [("id", row.id), ("measured on", str(card.metrics.get("machine", "not named")))]
    return Made("Scorecard", said, facts, _documents(row.spec, row.metrics, "numbers"), _gone(row.path))


def _verdict(turn: Turn) -> Made:
    row = turn.verdict
    facts = [("id", row.id), ("held against", row.reference), ("flow run", row.flow_run_id or "none")]
    return Made("Verdict", row.outcome, facts, _documents(row.spec, row.reasons, "findings"))


def _version(turn: Turn) -> Made:
    row = turn.verdict
    if row.model_version is None:
        return Made("Version", "not registered", [], [])
    facts = [("MLflow run", row.mlflow_run_id or "none")]
    with session(write=False) as db:
        moves = db.scalars(
            select(Promotion)
            .where(Promotion.workload == turn.workload, Promotion.version == row.model_version)
            .order_by(Promotion.number)
        ).all()
    facts += [(f"{move.by}", f"{move.at:%Y-%m-%d %H:%M} UTC: {move.reason}") for move in moves if move.at]
    alone = "" if row.outcome == PROMOTE else ", which serves nobody by itself"
    return Made("Version", f"{turn.workload}, version {row.model_version}{alone}", facts, [])


def _documents(
    spec: Mapping[str, Any], report: Mapping[str, Any] | None = None, name: str = "report"
) -> list[tuple[str, str]]:
    told = {key: value for key, value in (report or {}).items() if key not in HIDDEN}
    return [(what, json.dumps(of, indent=2, ensure_ascii=False)) for what, of in (("spec", spec), (name, told)) if of]


def _gone(path: str) -> str:
    return "" if not path or Path(path).exists() else "its files are no longer on file"
