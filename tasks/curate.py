"""Interactions and feedback → a frozen dataset: train, validation and holdout, disjoint and hashed.

The holdout is the latest traffic. What came before trains, unless it belongs to a conversation or near-duplicate
cluster of the holdout, or ever was in one; validation is a random part of it, by whole conversations and clusters.
Every interaction ends in one split or under one reason in `left_out`.

The rules about feedback are in `policy.py`, near duplicates in `similarity.py`, the split in `splits.py`, the frozen
files in `frozen.py`; students' answers are replaced in `relabel.py`.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Dataset as DatasetRow
from infra.database.tables import DatasetItem
from infra.prefix import Prefix, text_of
from infra.settings import SetupError
from tasks.cases import Case, deduplicated, gather
from tasks.frozen import Dataset, freeze, load
from tasks.policy import judge
from tasks.relabel import relabel
from tasks.similarity import clusters
from tasks.splits import split
from tasks.teachers import teacher_for

__all__ = ["CurateSpec", "Dataset", "curate", "load"]

Progress = Callable[[int, int, str], None]
SHARED_BY = 0.95  # of a workload's requests begin with the prefix that is baked


@dataclass(frozen=True)
class CurateSpec:
    """How traffic becomes a dataset.

    Attributes:
        min_rows: Fewer usable interactions cannot be split into anything that says something.
        max_rows: The latest interactions that are looked at.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    holdout: Annotated[float, Field(gt=0, lt=1, description="Share of the rows, the latest, that only measure")] = 0.25
    validation: Annotated[float, Field(ge=0, lt=1, description="Share of the rest that picks the best epoch")] = 0.05
    near_duplicate: Annotated[float, Field(gt=0, le=1, description="Jaccard index of near-duplicate requests")] = 0.7
    bake: Annotated[
        bool, Field(description="Leave the shared system prompt and tools out of what the student reads")
    ] = True
    min_rows: Annotated[int, Field(ge=4, description="Usable interactions without which there is no dataset")] = 40
    max_rows: Annotated[int, Field(ge=4, description="Latest interactions to look at")] = 50_000
    seed: int = 0


def curate(
    workload: str, spec: CurateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Freeze a workload's traffic as a dataset.

    The same rows and spec give the same id, in whatever order and database they are stored.

    Returns:
        dataset_id, workload, path, the number of rows in train, validation and holdout, and the report: where every
        interaction went, what feedback did, how many clusters, and what baking saves of the prompt.

    Raises:
        SetupError: The workload is unknown, or too little of its traffic is usable.
    """
    teacher = teacher_for(workload)
    with session(write=False) as db:
        cases = gather(db, workload, spec.max_rows)
        held_out = set(
            db.scalars(
                select(DatasetItem.interaction_id)
                .join(DatasetRow, DatasetRow.id == DatasetItem.dataset_id)
                .where(DatasetRow.workload == workload, DatasetItem.split == "holdout")
            )
        )
    left_out: Counter[str] = Counter()
    prefix, share = shared_prefix(cases) if spec.bake else (None, 0.0)
    for case, number in zip(
        cases, clusters([spoken(case.request, prefix) for case in cases], spec.near_duplicate, progress), strict=True
    ):
        case.cluster = number
    usable = usable_cases(deduplicated(cases, left_out), prefix, teacher is not None, left_out)
    if len(usable) < spec.min_rows:
        raise too_small(workload, f"{len(usable)} usable rows, under min_rows={spec.min_rows}", cases, left_out)
    before = (
        {case.cluster for case in cases if case.id in held_out},
        {c.conversation for c in cases if c.id in held_out},
    )
    splits = split(usable, spec.holdout, spec.validation, spec.seed, held_out, before, left_out)
    asked = relabel(workload, [case for part in splits.values() for case in part], teacher, progress)
    for name, part in splits.items():
        splits[name] = [case for case in part if case.expected is not None]
        left_out["the teacher gave no usable answer"] += len(part) - len(splits[name])
    if not splits["train"] or not splits["holdout"]:
        sizes = ", ".join(f"{len(part)} for {name}" for name, part in splits.items())
        raise too_small(workload, f"{sizes} after the split", cases, left_out)
    frozen = [case for part in splits.values() for case in part]
    report = {
        "interactions": len(cases),
        "left_out": {reason: n for reason, n in sorted(left_out.items()) if n},
        "feedback": dict(sorted(Counter(case.judgement.rule for case in frozen).items())),
        "origins": dict(sorted(Counter(case.origin for case in frozen).items())),
        "clusters": len({case.cluster for case in frozen}),
        "teacher": teacher.name if teacher and asked else None,
        "prefix_share": round(share, 4),
        **savings(frozen, prefix),
    }
    rows = {name: [case.row() for case in part] for name, part in splits.items()}
    return freeze(workload, rows, prefix, asdict(spec), report, flow_run_id)


def shared_prefix(cases: Sequence[Case]) -> tuple[Prefix | None, float]:
    """The prefix that nearly all requests begin with, if there is one worth baking, and the share of the commonest."""
    found = {prefix.fingerprint: prefix for prefix in (Prefix.of(case.request) for case in cases)}
    counts = Counter(Prefix.of(case.request).fingerprint for case in cases)
    fingerprint, n = max(counts.items(), key=lambda item: (item[1], item[0]))
    prefix = found[fingerprint]
    empty = prefix.system is None and not prefix.tools
    return (None if empty or n < SHARED_BY * len(cases) else prefix), n / len(cases)


def spoken(request: dict[str, Any], prefix: Prefix | None) -> str:
    """What a request says after the prefix, as text."""
    messages = request["messages"]
    stripped = prefix.strip(messages, request.get("tools")) if prefix else None
    return "\n".join(_words(message) for message in (stripped[0] if stripped else messages))


def _words(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    said = [text_of(message.get("content")) or "", *(f"{f['name']} {f['arguments']}" for f in calls)]
    return " ".join(part for part in said if part)


def usable_cases(cases: Sequence[Case], prefix: Prefix | None, has_teacher: bool, left_out: Counter[str]) -> list[Case]:
    """The cases that can train or measure, each with what the student reads and, but for relabelling, its answer."""
    usable = []
    for case in cases:
        case.judgement = judge(case.answer, case.opinions)
        if reason := _unusable(case, prefix, has_teacher):
            left_out[reason] += 1
        else:
            usable.append(case)
    return usable


def _unusable(case: Case, prefix: Prefix | None, has_teacher: bool) -> str:
    """Why a case is left out; empty if it is not, and then it is completed."""
    request, rule = case.request, case.judgement.rule
    read = prefix.strip(request["messages"], request.get("tools")) if prefix else None
    if prefix and read is None:
        return "another prefix than the baked one"
    messages, tools = read or (request["messages"], request.get("tools") or None)
    texts = [text_of(message.get("content")) for message in messages]
    if any(text is None and message.get("content") is not None for text, message in zip(texts, messages, strict=True)):
        return "a request that is not only text"
    case.messages = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
    case.tools = tools
    if rule == "correction":
        case.expected, case.origin = case.judgement.answer, "correction"
        return ""
    if case.student and has_teacher:
        case.origin = "relabelled"
        return ""
    if case.answer is None:
        return "no usable answer"
    if rule == "objection":
        return "an answer that was objected to"
    if case.student and rule != "praise":
        return "a student's answer that nobody vouches for"
    case.expected = case.answer
    return ""


def savings(cases: Sequence[Case], prefix: Prefix | None) -> dict[str, Any]:
    """What baking leaves of the prompt, in characters; `distill` counts it in tokens."""
    whole = sum(len(json.dumps([c.request["messages"], c.request.get("tools")], ensure_ascii=False)) for c in cases)
    read = sum(len(json.dumps([case.messages, case.tools], ensure_ascii=False)) for case in cases)
    return {
        "prompt_characters": round(whole / len(cases)),
        "prompt_characters_read": round(read / len(cases)),
        "prompt_saved": round(1 - read / whole if prefix else 0.0, 4),
    }


def too_small(workload: str, found: str, cases: Sequence[Case], left_out: Counter[str]) -> SetupError:
    reasons = "; ".join(f"{reason}: {n}" for reason, n in left_out.most_common() if n)
    why = f" ({reasons})" if reasons else ""
    return SetupError(
        f"workload {workload!r} is too small to split: {found}, of {len(cases)} interactions{why}; "
        "ingest more traffic, or lower curate.min_rows or curate.holdout"
    )
