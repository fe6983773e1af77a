"""Scorecards → verdict → registry: the gate is asked about each candidate, each is registered, one that passes serves.

The references are the teacher and, if there is one, the champion (`gate/rule.py` says why both). Each candidate held
against them is a look at the holdout, and a holdout has only so many (`gate/looks.py`).
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from infra.rollout.spec import RolloutSpec
from infra.settings import SetupError
from tasks.evaluate import candidates_of
from tasks.gate import looks
from tasks.gate.cards import cards_of
from tasks.gate.register import names, register
from tasks.gate.rule import INCONCLUSIVE, PROMOTE, REJECT, Card, Finding, Judgement, judge
from tasks.gate.rule import GateSpec as GateSpec

Progress = Callable[[int, int, str], None]
ALIKE = 1.1  # times of one artifact differ by a tenth from run to run


def release(
    dataset_id: str,
    spec: GateSpec,
    rollout: RolloutSpec = RolloutSpec(),  # noqa: B008 (frozen)
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Gate the candidates of a dataset and register them; let the cheapest that passes serve, or begin to.

    Each candidate gets a verdict with its reasons, which is stored before the alias moves. Doing it again on the same
    scorecards changes nothing.

    Returns:
        workload, dataset_id, outcome, verdict (the winner's id, or a candidate's), reference (what serves), references,
        winner, version (the winner's), reasons, margin, confidence, yardsticks, looks and their budget, notes, steps
        (of the rollout), and a row a model, which has a candidate's version.

    Raises:
        SetupError: The dataset is unknown or has no candidates, or MLflow cannot be reached.
    """
    from infra import registry
    from infra.database.session import session
    from infra.database.tables import Dataset
    from infra.rollout.state import begin

    with session(write=False) as db:
        dataset = db.get(Dataset, dataset_id)
    if dataset is None:
        raise SetupError(f"dataset {dataset_id!r} is unknown; `flywheel curate` makes one and prints its id")
    if not candidates_of(dataset_id):
        raise SetupError(
            f"dataset {dataset_id} has no candidates; `flywheel distill` and `flywheel quantize` make them"
        )
    serving = registry.champion(dataset.workload)
    teacher, champion, candidates = cards_of(dataset_id, serving)
    references = [champion, teacher] if champion else [teacher]
    budget = dataset.spec.get("looks", looks.BUDGET)
    verdicts = _judged(dataset, candidates, references, spec, budget)
    passed = [card for card, judgement in verdicts if judgement.outcome == PROMOTE]
    winner = best(passed) if passed else None
    versions, lost = register(dataset, verdicts, winner, references, flow_run_id, progress)
    _store_verdicts(dataset.workload, dataset_id, verdicts, references, versions, spec, flow_run_id)
    if winner:
        reason = f"{winner.name} passed the gate against {names(references)}"
        begin(dataset.workload, versions[winner.subject][0], rollout, "release", reason, flow_run_id)
    outcomes = [judgement.outcome for _, judgement in verdicts]
    outcome = PROMOTE if winner else REJECT if set(outcomes) == {REJECT} else INCONCLUSIVE
    return {
        "workload": dataset.workload, "dataset_id": dataset_id, "outcome": outcome,
        "verdict": verdict_id(dataset_id, winner or candidates[0], references, spec),
        "reference": references[0].subject, "references": [card.subject for card in references],
        "winner": winner.name if winner else None, "version": versions[winner.subject][0] if winner else None,
        "reasons": [f"{card.name}: {j.outcome}; {reason}" for card, j in verdicts for reason in j.reasons],
        "margin": spec.margin, "confidence": spec.confidence, "steps": len(rollout.steps),
        "yardsticks": teacher.metrics.get("yardsticks", {}),
        "looks": looks.looks(dataset_id, dataset.workload), "budget": budget,
        "notes": [*([] if winner else _notes(champion, teacher, spec)), *lost],
        "rows": [_row(card) for card in (teacher, champion) if card]
        + [_row(card, judgement, versions.get(card.subject)) for card, judgement in verdicts],
    }  # fmt: skip


def _judged(
    dataset: Any, candidates: Sequence[Card], references: Sequence[Card], spec: GateSpec, budget: int
) -> list[tuple[Card, Judgement]]:
    """Each candidate's judgement, as long as the holdout may be looked at."""
    ids = {card.subject: verdict_id(dataset.id, card, references, spec) for card in candidates}
    known, used = looks.decided(ids.values()), looks.looks(dataset.id, dataset.workload)
    found = []
    for card in candidates:
        if ids[card.subject] not in known and used >= budget:
            spent = (
                f"the holdout of dataset {dataset.id} has been used to decide {used:.0f} times and its budget is "
                f"{budget} (curate.looks), so it is not asked again; `flywheel curate --workload {dataset.workload}` "
                "cuts a fresh one once there is traffic that was not"
            )
            found.append((card, Judgement((Finding(INCONCLUSIVE, spent),))))
            continue
        judgement = judge(card, references, spec)
        used += bool(judgement.family) and ids[card.subject] not in known
        found.append((card, judgement))
    return found


def _notes(champion: Card | None, teacher: Card, spec: GateSpec) -> list[str]:
    """That what serves is itself worse than the teacher, where that is shown: no candidate need be better to matter."""
    if champion is None:
        return []
    judgement = judge(champion, [teacher], spec)
    if judgement.outcome != REJECT:
        return []
    back = "`flywheel release --rollback` gives what served before its place back"
    return [
        f"{champion.name} serves, and is itself shown to be worse than the teacher: {r}; {back}"
        for r in judgement.reasons
    ]


def verdict_id(dataset_id: str, candidate: Card, references: Sequence[Card], spec: GateSpec) -> str:
    """Hash of all that a verdict follows from: scorecards and spec."""
    parents = [
        dataset_id,
        candidate.subject,
        candidate.id,
        [(card.subject, card.id) for card in references],
        asdict(spec),
    ]
    return hashlib.sha256(json.dumps(parents, sort_keys=True).encode()).hexdigest()[:16]


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


def best(passed: Sequence[Card]) -> Card:
    """The cheapest of those that passed; of those that cost as much, as far as a clock can tell, the one most right."""
    seconds = {card.subject: math.inf if card.seconds is None else card.seconds for card in passed}
    enough = ALIKE * min(seconds.values())
    return min(
        (card for card in passed if seconds[card.subject] <= enough),
        key=lambda card: (-(card.metrics.get("quality") or 0.0), card.metrics.get("bytes") or math.inf, card.subject),
    )


def _store_verdicts(
    workload: str,
    dataset_id: str,
    verdicts: Sequence[tuple[Card, Judgement]],
    references: Sequence[Card],
    versions: Mapping[str, tuple[str, str]],
    spec: GateSpec,
    flow_run_id: str | None,
) -> None:
    from infra.database.session import session
    from infra.database.tables import Verdict

    with session() as db:
        for card, judgement in verdicts:
            version, run_id = versions.get(card.subject, (None, None))
            told = {"reasons": judgement.reasons, "findings": [asdict(f) for f in judgement.findings]}
            db.merge(
                Verdict(
                    id=verdict_id(dataset_id, card, references, spec), workload=workload, dataset_id=dataset_id,
                    candidate_id=card.subject.partition(":")[2], reference=names(references),
                    outcome=judgement.outcome, model_version=version, mlflow_run_id=run_id, spec=asdict(spec),
                    reasons={**told, "family": judgement.family},
                    flow_run_id=flow_run_id,
                )
            )  # fmt: skip


def _row(card: Card, judgement: Judgement | None = None, version: tuple[str, str] | None = None) -> dict[str, Any]:
    numbers = ("quality", "low", "high", "n", "bytes", "tokens_per_second", "latency_p50_ms", "abstained")
    first = judgement.findings[0] if judgement else None
    return {
        "subject": card.subject, "name": card.name, **{key: card.metrics.get(key) for key in numbers},
        "cost": card.cost, "outcome": judgement.outcome if judgement else None,
        "difference": first.difference if first else None, "bound": first.low if first else None,
        "version": version[0] if version else None,
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
            "verdict": row["outcome"] or ("reference" if row["subject"] in result["references"] else ""),
        }
        for row in result["rows"]
    ]


def verdict_markdown(result: dict[str, Any]) -> str:
    """The verdict and its reasons, to be read in a terminal and as Markdown alike."""
    asked = f"margin {100 * result['margin']:g} points, confidence {result['confidence']:.0%}"
    happened = {
        PROMOTE: f"{result['winner']} {'is under way' if result['steps'] else 'serves'} as version {result['version']}",
        REJECT: f"no candidate is good enough; what served goes on serving ({result['reference']})",
        INCONCLUSIVE: f"nothing is shown either way; what served goes on serving ({result['reference']})",
    }[result["outcome"]]
    lines = [
        f"**{result['outcome']}** of {result['workload']}: {happened} ({asked}, dataset {result['dataset_id']})",
        "",
    ]
    held = ", ".join(f"{n:,} items by {name}" for name, n in result["yardsticks"].items()) or "nothing"
    used = f"it has been used to decide {result['looks']:.0f} times of {result['budget']}"
    return "\n".join(
        [
            *lines,
            *(f"- {reason}" for reason in [*result["reasons"], *result["notes"]]),
            "",
            f"Held out: {held}; {used}.",
        ]
    )


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
