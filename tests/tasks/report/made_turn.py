"""A turn of the wheel up to its verdicts: traffic in a real database, a frozen dataset, answers that are made up."""

import json
from collections.abc import Collection
from typing import Any

from infra import registry
from infra.database.session import session
from infra.database.tables import Candidate, Scorecard, Student
from infra.settings import settings
from tasks.curate import CurateSpec, curate, load
from tasks.metrics import Answered, Quality
from tasks.release import GateSpec, release
from tasks.scoring.scorecards import score, write_items
from tests.tasks.test_curate import put, question, record

HOSTILE = (
    "w"
    * 3000
    + " </style><script>window.hacked = 1</script> <img src=http://example.com/x.png onerror=window.hacked=1> "
    "\"quotes\" 'and' &amp; \N{RIGHT-TO-LEFT OVERRIDE}שלום עולם العربية 🌱"
)
GATE = GateSpec(margin=0.2, min_holdout=10)
TURN = dict[str, Any]


def said(n: int, text: str | None = None) -> dict[str, Any]:
    """A call or words, by turns."""
    if n % 2:
        return {"role": "assistant", "content": text or f"answer {n % 3}"}
    arguments = json.dumps({"order": text or str(n)})
    call = {"id": "1", "type": "function", "function": {"name": "track_order", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def traffic(workload: str, hostile: bool, opinions: bool) -> None:
    records = []
    for n in range(160):
        messages = [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": question(n) + (f" {HOSTILE}" if hostile and n > 110 else "")},
        ]
        answer = {"model": "big", "choices": [{"message": said(n), "finish_reason": "stop"}]}
        more = {"id": f"{workload}-{n}", "workload_id": workload, "conversation_id": f"{workload}-{n}"}
        records.append(record(n, **more, client_id=f"c{n}", request={"messages": messages}, response=answer))
    put(*records)
    if opinions:
        about = [(10, "thumb", 1), (125, "thumb", 1), (127, "correction", "other")]
        put(*({"record_id": f"{workload}-{n}", "timestamp": 1_756_000_000, "kind": k, "value": v} for n, k, v in about))


def scored(
    dataset_id: str, subject: str, wrong: Collection[int], digest: str | None, text: str, **measured: Any
) -> None:
    """A scorecard on the holdout; `wrong` are places in it where the answer is another."""
    dataset = load(dataset_id)
    rows = dataset.split("holdout")
    answers = [said(i, text) if i in wrong else row["expected"] for i, row in enumerate(rows)]
    answered = [Answered(row, answer) for row, answer in zip(rows, answers, strict=True)]
    metrics, items = score(answered, Quality())
    path = settings().home / "scorecards" / f"{dataset_id}-{subject.replace(':', '-')}" / "items.parquet"
    write_items(path, answered, items)
    told = {
        "bytes": 3_000_000,
        "latency_p50_ms": 9.5,
        "tokens_per_second": 900.0,
        "seconds_per_request": 0.02,
        **measured,
    }
    name = "teacher" if subject == "teacher" else subject
    with session() as db:
        db.merge(
            Scorecard(
                id=f"{dataset_id}-{subject}", dataset_id=dataset_id, subject=subject, artifact_hash=digest,
                path=str(path), metrics={"name": name, **metrics, "machine": "here", **told}, spec={},
            )
        )  # fmt: skip


def candidate(dataset_id: str, student: str, name: str) -> tuple[str, str]:
    folder = settings().home / "candidates" / f"{student}-{name}"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(f"{student} {name}".encode())
    (folder / "flywheel.json").write_text("{}")
    digest = registry.artifact_hash(folder)
    spec = {"method": {"name": "rtn", "bits": 4}}
    with session() as db:
        db.add(
            Candidate(
                id=folder.name, student_id=student, name=name, format="gguf", path=str(folder), artifact_hash=digest,
                size=9, spec=spec,
            )
        )  # fmt: skip
    return folder.name, digest


def turn(
    workload: str,
    *,
    wrong: Collection[int] = (1, 4),
    teacher: dict[str, Any] | None = None,
    hostile: bool = False,
    opinions: bool = True,
    kind: str = "causal",
    gate: GateSpec = GATE,
) -> TURN:
    """What `release` returns of a turn with two candidates, one of which has `wrong` and the other ten more."""
    traffic(workload, hostile, opinions)
    made = curate(workload, CurateSpec(min_rows=10))
    return judged(made["dataset_id"], workload, wrong, teacher, hostile, kind, gate)


def judged(
    dataset_id: str, workload: str, wrong: Collection[int], teacher: dict[str, Any] | None, hostile: bool, kind: str,
    gate: GateSpec, number: int = 1,
) -> TURN:  # fmt: skip
    text = HOSTILE if hostile else "something else"
    folder = settings().home / "students" / f"{dataset_id}-{number}"
    folder.mkdir(parents=True)
    history = [{"epoch": n, "step": 20 * n, "validation_loss": 1 / n} for n in (1, 2, 3)]
    curves = {"loss": [[n, 2 / n] for n in range(1, 61)], "validation": history}
    (folder / "training.json").write_text(json.dumps(curves))
    report = {"history": history, "steps": 60, "examples": 112, "base": "<b>base</b>"}
    with session() as db:
        db.add(Student(id=folder.name, dataset_id=dataset_id, path=str(folder), report=report, spec={"name": kind}))
    scored(
        dataset_id, "teacher", [0], None, text, **{"bytes": 15_000_000, "seconds_per_request": 0.1, **(teacher or {})}
    )
    for name, more, extra in (("int4", wrong, {}), ("int2", [*wrong, *range(10, 20)], {"bytes": 1_500_000})):
        made, digest = candidate(dataset_id, folder.name, name)
        scored(dataset_id, f"candidate:{made}", more, digest, text, **extra)
    return release(dataset_id, gate, flow_run_id="run-1")
