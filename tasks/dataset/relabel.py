"""Answers replaced by the teacher's, and answers that the log lacks.

A student must not be trained and judged on its own answers, so these are asked again wherever there is a teacher that
can be asked. Further than that goes who asks for it: `unlabelled` has the teacher answer what the log holds no usable
answer to (an error, cut off, empty, none), `all` has it answer everything but what a person corrected or labelled, for
a better teacher than the logged one, or for its log-probabilities where the log has none.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from infra.database.jsontext import from_column
from infra.database.messages import answer_of
from infra.database.policy import SAID, same
from tasks.dataset.cases import Case
from tasks.teachers import Answer, LoggedTeacher, Question, Teacher
from tasks.teachers.answers import UNUSABLE
from tasks.teachers.logprobs import compact

Progress = Callable[[int, int, str], None]
Relabel = Literal["students", "unlabelled", "all"]


class Relabeller:
    """Decides what the answer of each case is, and asks the teacher where it is not the log's.

    Attributes:
        asked: Cases whose answer is the teacher's, by what it says now or said before.
    """

    def __init__(self, teacher: Teacher, relabel: Relabel, progress: Progress | None) -> None:
        self.teacher, self.relabel, self.progress = teacher, relabel, progress
        self.asked = 0

    def asks(self, by_student: bool, answered: bool) -> bool:
        """Whether the teacher is asked for an answer that no person has corrected.

        Args:
            by_student: A student of ours gave the logged one.
            answered: The logged one could be imitated.
        """
        if isinstance(self.teacher, LoggedTeacher):
            return False
        return by_student or self.relabel == "all" or (self.relabel == "unlabelled" and not answered)

    def decide(self, case: Case) -> None:
        """Where its answer comes from: a person, the log, or the teacher, who is yet to be asked."""
        if case.judgement.rule in SAID:
            case.expected, case.origin = case.judgement.answer, case.judgement.rule
        elif self.asks(case.student, case.answer is not None):
            case.origin = "relabelled"
        else:
            case.expected = case.answer
            if not case.student and '"logprobs"' in case.response:  # a student's distribution is no teacher's
                case.logprobs = compact((from_column(case.response).get("choices") or [{}])[0])

    def ask(self, cases: Sequence[Case]) -> None:
        """Have the teacher answer what is its to answer; a case that it has no answer for says why."""
        mine = [case for case in cases if case.origin == "relabelled"]
        if not mine:
            return
        questions = [Question(case.id, case.request) for case in mine]
        for case, answer in zip(mine, self.teacher.answer(questions, self.progress), strict=True):
            case.expected = imitable(answer)
            case.logprobs = answer.logprobs
            disliked = case.judgement.rejected if case.judgement.rule == "objection" else None
            if case.expected and disliked and same(case.expected, disliked):
                case.expected = None
            case.unanswered = "" if case.expected else answer.reason or UNUSABLE
        self.asked += len(mine)

    def report(self) -> dict[str, Any]:
        """Who was asked, and what it took; nothing where nobody was."""
        if not self.asked or isinstance(self.teacher, LoggedTeacher):
            return {"teacher": None}
        return {"teacher": self.teacher.name, "teacher_use": self.teacher.tally.report()}


def imitable(answer: Answer) -> dict[str, Any] | None:
    """A teacher's answer, held to what a logged one is held to."""
    return answer_of({"choices": [{"message": answer.message, "finish_reason": answer.finish_reason}]})
