"""Sources → interactions and feedback in the database, each once; what cannot be understood → quarantine.

A batch of rows and the cursor behind it are one transaction: a run that was killed goes on where it stopped. A part of
a source with anything in quarantine is read from its start each time, so that a fix (of our reader, or the `workload`
option) brings those records in.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.database.records import InteractionRow
from infra.database.session import Interrupted, session
from infra.database.store import Fate, accept, move_cursor, release
from infra.database.tables import Cursor, Interaction
from infra.privacy.redaction import Redactor, redactor
from infra.settings import SetupError
from tasks.sources import Source
from tasks.sources.ahead import Batch, batches, frozen
from tasks.sources.halves import Halves
from tasks.sources.part import Part

Progress = Callable[[int, int, str], None]
T = TypeVar("T")
COUNTED = ("rows", "interactions", "feedback", "duplicates", "quarantined")
PAUSES = (0.5, 1, 2, 4, 8)  # seconds; PostgreSQL is back from a restart by then


def ingest(
    source: Source, redact: str = "", *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Read a source into the database; what is there already changes nothing.

    Args:
        redact: What is redacted, kinds with commas between, `all` or `none`; without it, what FLYWHEEL_REDACT says.

    Returns:
        rows = interactions + feedback + duplicates + quarantined, to the row. `quarantined` counts the rows of this
        reading that lie in quarantine, `workloads` names those of the interactions that were new, `problems` are the
        first reasons.

    Raises:
        SetupError: There is nothing to read, or nothing in it could be understood.
    """
    chosen = redactor(redact)
    parts = source.parts()
    sizes = [part.size for part in parts]
    total, read = sum(size or 0 for size in sizes) if None not in sizes else 0, 0
    report = Report()
    halves: dict[str, Halves] = {}
    with frozen():
        for part in parts:
            bad = 0
            if part.kind not in halves:
                halves[part.kind] = Halves(part.kind)
            for batch in batches(part, position_of(part), chosen):
                bad += report.add(batch, write(part, batch, chosen, halves[part.kind], bad))
                if progress and total:
                    progress(read + min(batch.done, part.size or 0), total, "ingest")
                elif progress:
                    progress(report.counts["rows"], 0, "ingest, rows")
            report.counts.update(rows=part.skipped, duplicates=part.skipped)
            read += part.size or 0
    counts, problems = report.counts, report.problems
    understood = counts["rows"] - counts["quarantined"]
    if not counts["rows"]:
        raise SetupError(f"no record in {_named(parts)}; give a file with at least one record")
    if not understood:
        raise SetupError(
            f"nothing in {_named(parts)} could be understood: all {counts['rows']} rows are kept in quarantine, "
            f"the first because: {problems[0]}; `flywheel ingest --help` names the kinds of sources"
        )
    return {**counts, "workloads": sorted(report.workloads), "files": len(parts), "problems": problems}


@dataclass
class Report:
    """What became of the rows of a run.

    Attributes:
        workloads: Of the interactions that were new.
        problems: The first reasons why a row went to quarantine, each with its place.
    """

    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))
    workloads: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def add(self, batch: Batch, fates: Sequence[tuple[Fate, str]]) -> int:
        """Count a batch; how many of its rows went to quarantine."""
        refused = [(entry.where, reason) for entry, (_, reason) in zip(batch.records, fates, strict=True) if reason]
        new = [entry.row for entry, (fate, _) in zip(batch.records, fates, strict=True) if fate == "stored"]
        fresh = [row for row in new if isinstance(row, InteractionRow)]
        self.workloads.update(row.workload for row in fresh)
        self.problems += [f"{where}: {reason}" for where, reason in refused][: max(0, 5 - len(self.problems))]
        self.counts.update(
            rows=len(fates), interactions=len(fresh), feedback=len(new) - len(fresh), quarantined=len(refused),
            duplicates=[fate for fate, _ in fates].count("duplicate"),
        )  # fmt: skip
        return len(refused)


def _named(parts: Sequence[Part]) -> str:
    return repr(parts[0].label) + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")


def position_of(part: Part) -> dict[str, Any] | None:
    """How far it has been read."""

    def transaction() -> dict[str, Any] | None:
        with session(write=False) as db:
            cursor = db.get(Cursor, part.cursor)
        return cursor.position if cursor else None

    return patiently(transaction)


def patiently(transaction: Callable[[], T]) -> T:
    """What a transaction gives; done again while the database is away, as when it is restarted.

    Where the connection broke off in a commit, nobody knows whether it was done. If it was, its rows are duplicates
    now: the report then has fewer new rows, the database has each once.
    """
    for pause in PAUSES:
        try:
            return transaction()
        except Interrupted:
            time.sleep(pause)
    return transaction()


def write(part: Part, batch: Batch, redact: Redactor, halves: Halves, bad: int) -> list[tuple[Fate, str]]:
    """Store a batch and move the cursor, in one transaction; what became of each of its rows.

    Args:
        halves: Lines of this kind of source that were half written when they were read.
        bad: Rows of this part that went to quarantine before.
    """

    def transaction() -> list[tuple[Fate, str]]:
        with session() as db:
            fates = accept(db, part.kind, batch.records, redact)
            if completed := halves.completed(batch.records):
                release(db, part.kind, completed)
            if batch.position:
                quarantined = bad + sum(1 for _, reason in fates if reason)
                move_cursor(db, part.cursor, {**batch.position, "quarantined": quarantined, "path": part.label})
        return fates

    return patiently(transaction)


def workloads() -> list[str]:
    """Every workload that has traffic."""
    with session(write=False) as db:
        return list(workloads_of(db))


def workloads_of(db: Session) -> Iterator[str]:
    """Every workload that has traffic, in order: the next name after the last, where DISTINCT would read every row."""
    last = db.scalar(select(func.min(Interaction.workload)))
    while last is not None:
        yield last
        last = db.scalar(select(func.min(Interaction.workload)).where(Interaction.workload > last))
