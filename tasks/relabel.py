"""Students' answers, replaced by the teacher's: a student must not be trained and judged on its own answers."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select

from infra.database.messages import answer_of
from infra.database.session import session
from infra.database.tables import Dataset as DatasetRow
from infra.settings import SetupError
from tasks.cases import Case
from tasks.frozen import SPLITS, load
from tasks.policy import same
from tasks.teachers import Teacher

Progress = Callable[[int, int, str], None]


class Relabeller:
    """Decides what the answer of each case is, and asks the teacher where it is a student's.

    Attributes:
        asked: Cases whose answer is the teacher's, by what it said now or for an earlier dataset.
    """

    def __init__(self, workload: str, teacher: Teacher | None, progress: Progress | None) -> None:
        self.workload, self.teacher, self.progress = workload, teacher, progress
        self.asked = 0
        self._known: dict[int, dict[str, Any]] | None = None

    @property
    def name(self) -> str | None:
        return self.teacher.name if self.teacher else None

    def decide(self, case: Case) -> None:
        """Where its answer comes from: a correction, the log, or the teacher, who is yet to be asked."""
        if case.judgement.rule == "correction":
            case.expected, case.origin = case.judgement.answer, "correction"
        elif case.student and self.teacher:
            case.origin = "relabelled"
        else:
            case.expected = case.answer

    def ask(self, cases: Sequence[Case]) -> None:
        """Ask the teacher what students answered, unless an earlier dataset has its answer."""
        open_cases = [case for case in cases if case.origin == "relabelled"]
        if not open_cases or self.teacher is None:
            return
        if self._known is None:
            self._known = remembered(self.workload, self.teacher.name)
        asked = [case for case in open_cases if case.id not in self._known]
        requests = [{k: v for k, v in case.request.items() if not k.startswith("stream")} for case in asked]
        answers = self.teacher.answer(requests, self.progress) if requests else []
        known = self._known | {case.id: answer for case, answer in zip(asked, answers, strict=True)}
        for case in open_cases:
            answer = answer_of({"choices": [{"message": known[case.id]}]})
            disliked = case.judgement.rejected if case.judgement.rule == "objection" else None
            case.expected = None if answer and disliked and same(answer, disliked) else answer
        self.asked += len(open_cases)


def remembered(workload: str, teacher: str) -> dict[int, dict[str, Any]]:
    """Answers of this teacher that earlier datasets of the workload hold, by interaction."""
    with session(write=False) as db:
        rows = db.scalars(select(DatasetRow).where(DatasetRow.workload == workload).order_by(DatasetRow.created))
        found = [row.id for row in rows if row.report.get("teacher") == teacher]
    known: dict[int, dict[str, Any]] = {}
    for dataset_id in found:
        try:
            dataset = load(dataset_id)
        except SetupError:
            continue  # its files are gone: the teacher is asked again
        for name in SPLITS:
            known |= {r["interaction_id"]: r["expected"] for r in dataset.split(name) if r["origin"] == "relabelled"}
    return known
