"""A client or an interaction, erased from every table and file, and a mark on what was made of it.

Erased are interactions, what was said of them, what a teacher answered when it was asked about them again, what a
student in shadow would have answered, quarantined records that name them, their rows in datasets and scorecards, and
their lines in the gateway's spool; reports that could quote them are made again. A dataset keeps its id, by which
students and verdicts know it; its report gets `forgotten`, and each registered version that was trained on it the tag
`flywheel.forgotten`. The counts and metrics that were made before stay: they name no one.

The order makes it safe to be killed: first the tombstones (infra/database/forgotten.py), so that nothing comes back,
then the files, then the marks, and last the rows, by which another run finds what is left to do. It is not a Prefect
flow: Prefect keeps the parameters of its runs. Let no `curate` run beside it, which has read the rows already.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from infra import registry
from infra.database.among import among
from infra.database.forgotten import CLIENT, INTERACTION, RAW, bury, tombstone
from infra.database.policy import of_conversation
from infra.database.session import empty_log, session
from infra.database.tables import (
    Candidate,
    Dataset,
    DatasetItem,
    Feedback,
    Interaction,
    Quarantine,
    RolloutCall,
    Scorecard,
    Student,
    TeacherAnswer,
)
from infra.database.tables import now as present
from infra.privacy.redaction import redactor
from infra.settings import SetupError
from tasks.dataset.frozen import SPLITS
from tasks.erasure import NAMES, digest_of, erase_spooled, held, names, rewritten, spooled
from tasks.report.erased import erase_from_reports

Progress = Callable[[int, int, str], None]
BATCH = 1000
TAG = "flywheel.forgotten"
REMAINS = (
    "the weights of students that were trained on it: train and release anew, and roll back to none that has the tag",
    "the log that it was read from, and backups of the database, the home and MLflow",
    "other turns of its conversation that quote it, if only an interaction is forgotten",
    "on PostgreSQL the deleted rows' bytes, until VACUUM has passed",
)


@dataclass
class Target:
    """What is to be forgotten, and where it was found.

    Attributes:
        ids: Of interactions, as their logs name them, and of a client's conversations.
        interactions: Numbers of their rows.
        raw: Digests of records in quarantine, by the number of their row.
    """

    client: str | None
    interaction: str | None
    ids: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)
    interactions: set[int] = field(default_factory=set)
    raw: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.client if self.client is not None else self.interaction or ""

    @property
    def clients(self) -> set[str]:
        """The client as the log names it, and as it is stored where that is an e-mail address or the like.

        The last is how quarantine has it, and how rows were stored once: it may be another client's too, if both are
        known by short telephone numbers (`infra/privacy/pseudonyms.py`).
        """
        if self.client is None:
            return set()
        return {self.client, redactor().client(self.client), redactor().text(self.client)}

    def marks(self) -> set[str]:
        named = {tombstone(INTERACTION, name) for name in self.ids | self.conversations}
        raw = {tombstone(RAW, digest) for digest in self.raw.values()}
        return named | raw | {tombstone(CLIENT, client) for client in self.clients}


def forget(
    client: str | None = None,
    interaction: str | None = None,
    dry_run: bool = False,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Erase a client, with all of its interactions, or one interaction; of both what nobody has is no mistake.

    Returns:
        How many `interactions`, `feedback`, `quarantine` (records), `spool` (lines) and `answers` (of scorecards) were
        erased; `reports` that were made again; `datasets` and `versions` that held some of it; and what `remains`. Of a
        dry run, what would be.

    Raises:
        SetupError: Neither is given, or both; or MLflow cannot be reached, and then the rows are still there.
    """
    if (client is None) == (interaction is None) or "" in (client, interaction):
        raise SetupError("nothing says what to forget; give --client ID or --interaction ID, one of the two")
    target = Target(client, interaction, set() if interaction is None else {interaction})
    if not dry_run:
        _bury(target)  # before the look: what comes later is refused
    with session(write=False) as db:
        find(db, target)
    if not dry_run:
        _bury(target)
    found: dict[str, Any] = {"interactions": len(target.interactions), "quarantine": len(target.raw)}
    found["spool"] = erase_spooled(lambda record, line: _about(target, record, line), dry_run)
    found["datasets"] = [erase_from(dataset, target, dry_run) for dataset in datasets_with(target)]
    found["answers"] = sum(dataset.pop("answers") for dataset in found["datasets"])
    found["reports"] = erase_from_reports([dataset["dataset_id"] for dataset in found["datasets"]], dry_run)
    found["versions"] = mark_versions({d["dataset_id"]: d["forgotten"] for d in found["datasets"]}, dry_run)
    found["feedback"] = erase_rows(target, dry_run, progress)
    kind = "interaction" if client is None else "client"
    return {"forgot": kind, "id": target.name, "dry_run": dry_run, **found, "remains": list(REMAINS)}


def _bury(target: Target) -> None:
    with session() as db:
        bury(db, target.marks())


def find(db: Session, target: Target) -> None:
    """The rows that are about the target; no index helps to find a client's: all interactions are walked through."""
    wanted = select(Interaction.id, Interaction.external_id, Interaction.conversation)
    if target.client is None:
        wanted = wanted.where(Interaction.external_id == target.interaction)
    else:
        target.ids |= {name for client in target.clients for name in spooled(client)}
        wanted = wanted.where(Interaction.client.in_(target.clients))
    for number, external_id, conversation in db.execute(wanted.execution_options(yield_per=BATCH)):
        target.interactions.add(number)
        target.ids.add(external_id)
        if target.client is not None:
            target.conversations.add(conversation)
    known = target.ids | target.clients | {target.name}
    for row in db.execute(select(Quarantine.id, Quarantine.digest, Quarantine.raw).execution_options(yield_per=100)):
        if names(row.raw, known, target.name):
            target.raw[row.id] = row.digest


def _about(target: Target, record: dict[str, Any], line: bytes) -> bool:
    if not record:
        return names(line, target.ids | target.clients | {target.name}, target.name)
    said = {key: str(record[key]) for key in NAMES if record.get(key) is not None}
    return said.pop("client_id", None) in target.clients or any(
        said.get(key) in target.ids for key in ("id", "record_id")
    )


def parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]


def datasets_with(target: Target) -> list[str]:
    """The datasets that hold any of the interactions."""
    found: set[str] = set()
    with session(write=False) as db:
        for some in parts(sorted(target.interactions)):
            of = select(DatasetItem.dataset_id).where(among(db, DatasetItem.interaction_id, some)).distinct()
            found.update(db.scalars(of))
    return sorted(found)


def erase_from(dataset_id: str, target: Target, dry_run: bool) -> dict[str, Any]:
    """Take the interactions out of a dataset's files and out of the answers of its scorecards.

    Digests are written before the files are put in their place: of a run that was killed between the two, the next
    knows the files for its own. A file that was changed by others keeps the digest that it had, and stays refused.
    """
    with session(write=False) as db:
        row = db.get_one(Dataset, dataset_id)
        cards = list(db.scalars(select(Scorecard.path).where(Scorecard.dataset_id == dataset_id)))
    files = [file for split in SPLITS if (file := Path(row.path) / f"{split}.parquet").exists()]
    items = [Path(path) for path in cards if Path(path).exists()]
    if dry_run:
        count, answers = (sum(held(file, target.interactions) for file in some) for some in (files, items))
        return {"dataset_id": dataset_id, "workload": row.workload, "forgotten": count, "answers": answers}
    genuine = [file for file in files if digest_of(file) in _digests(row.report, file.name)]
    copies = {file: rewritten(file, target.interactions) for file in files}
    whole = sum(row.report.get(split, 0) for split in SPLITS)  # one that is older lacks the latest split
    report = {key: value for key, value in row.report.items() if key != "erasing"}
    pending = {file.name: digest_of(copies[file][0]) for file in genuine}
    _report(dataset_id, {**report, "erasing": pending})
    for file, (copy, _) in copies.items():
        copy.replace(file)
    for stale in Path(row.path).glob("*.safetensors"):  # the teacher's distributions over the rows, in their order
        stale.unlink()
    # Counted by what is left: a run that was killed and did this before is not counted twice.
    count = whole - sum(n for _, n in copies.values())
    mark = {"count": count, "at": present().isoformat()}
    _report(dataset_id, {**report, "forgotten": mark, "files": {**report["files"], **pending}})
    answers = 0
    for file in items:
        answers += held(file, target.interactions)
        rewritten(file, target.interactions)[0].replace(file)
    return {"dataset_id": dataset_id, "workload": row.workload, "forgotten": count, "answers": answers}


def _digests(report: dict[str, Any], name: str) -> set[str | None]:
    return {report["files"].get(name), report.get("erasing", {}).get(name)} - {None}


def _report(dataset_id: str, report: dict[str, Any]) -> None:
    with session() as db:
        db.get_one(Dataset, dataset_id).report = report


def mark_versions(forgotten: dict[str, int], dry_run: bool) -> list[dict[str, str]]:
    """Tag the registered versions whose student was trained on one of the datasets."""
    with session(write=False) as db:
        lineage = db.execute(
            select(Dataset.workload, Candidate.artifact_hash, Dataset.id)
            .join(Student, Student.dataset_id == Dataset.id)
            .join(Candidate, Candidate.student_id == Student.id)
            .where(Dataset.id.in_(forgotten))
            .order_by(Dataset.workload, Candidate.id)
        ).all()
    marked = []
    for workload, digest, dataset_id in lineage:
        known = registry.registered(workload, digest)
        if known is None:
            continue
        version = known[0]
        if not dry_run:
            registry.mark(
                workload, version, TAG, f"{forgotten[dataset_id]} of dataset {dataset_id}, {present().isoformat()}"
            )
        marked.append({"workload": workload, "version": version, "dataset_id": dataset_id})
    return sorted(marked, key=lambda one: (one["workload"], int(one["version"])))


def erase_rows(target: Target, dry_run: bool, progress: Progress | None) -> int:
    """Delete the rows, a batch a transaction, and interactions last; how much feedback it was."""
    feedback: set[int] = set()
    for some in parts(sorted(target.ids | target.conversations)):
        with session(write=False) as db:
            for opinion in db.scalars(select(Feedback).where(among(db, Feedback.record_id, some))):
                if opinion.record_id in target.ids or of_conversation(opinion):
                    feedback.add(opinion.id)
    if dry_run:
        return len(feedback)
    steps: list[tuple[Any, list[Any]]] = [
        (Quarantine.id, sorted(target.raw)), (Feedback.id, sorted(feedback)), (RolloutCall.id, sorted(target.ids)),
        (DatasetItem.interaction_id, sorted(target.interactions)),
        (TeacherAnswer.interaction_id, sorted(target.interactions)), (Interaction.id, sorted(target.interactions)),
    ]  # fmt: skip
    total, done = sum(len(numbers) for _, numbers in steps), 0
    for column, numbers in steps:
        for some in parts(numbers):
            with session() as db:
                if db.get_bind().dialect.name == "sqlite":
                    db.execute(text("PRAGMA secure_delete=ON"))  # overwrite what is deleted
                db.execute(delete(column.class_).where(among(db, column, some)))
            done += len(some)
            if progress:
                progress(done, total, "erase rows")
    empty_log()
    return len(feedback)
