"""Reports of which something was erased: each is made again from what is left, in the home and in MLflow.

A report quotes its dataset's holdout, so all reports on a dataset that lost a row are made again. One that cannot be
made is deleted, and its copy in MLflow replaced by a line that says so.
"""

from collections.abc import Sequence

from infra import reports
from infra.database.session import session
from infra.database.tables import Verdict
from tasks.report.file import place_of, write
from tasks.report.turn import turn_of, turns_of
from tasks.report.whole import html

GONE = "<!doctype html><title>Erased</title><p>This report was erased: it quoted what was to be forgotten.</p>"


def erase_from_reports(dataset_ids: Sequence[str], dry_run: bool) -> int:
    """Make the reports on these datasets again, after their files have been; how many there are.

    Raises:
        SetupError: MLflow cannot be reached.
    """
    with session(write=False) as db:
        turns = turns_of(db, Verdict.dataset_id.in_(dataset_ids))
    count = 0
    for verdicts in turns:
        first, path = verdicts[0], place_of(verdicts[0].id)
        with_it = sorted({v.mlflow_run_id for v in verdicts if v.mlflow_run_id})
        runs = reports.kept(first.id, first.workload, with_it)
        if not runs and not path.exists():
            continue
        count += 1
        if dry_run:
            continue
        try:
            turn = turn_of(verdicts)
            outcome, written = turn.outcome, html(turn)
        except Exception:  # whatever keeps it from being made again, what it quotes must go
            outcome, written = first.outcome, GONE
        if written is GONE:
            path.unlink(missing_ok=True)
        elif path.exists():
            write(path, written)
        if runs:
            reports.put(written, first.id, first.workload, outcome, with_it)
    return count
