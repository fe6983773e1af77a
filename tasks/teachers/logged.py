"""The teacher of whom only the log is left: what it answered then is what it answers.

That is what "no teacher" means: students imitate the logged answers, with the log's log-probabilities where it has any,
and the teacher is scored by what it said. A student's own answer in the log is nobody's lesson; it needs a person to
vouch for it, or a teacher that can be asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from infra.database.among import among
from infra.database.messages import answer_of
from infra.database.session import session
from infra.database.tables import Interaction
from tasks.teachers.answers import UNUSABLE, Answer, Question

Progress = Callable[[int, int, str], None]
BATCH = 500


@dataclass(frozen=True)
class LoggedTeacher:
    """Cannot be asked anew."""

    name: str = "as logged"
    identity: str = "logged"

    def behind_gateway(self) -> None:
        """Where no champion answers, nobody does."""

    def answer(self, questions: Sequence[Question], progress: Progress | None = None) -> list[Answer]:
        """What the log says was answered; a log that cannot be read as an answer is none."""
        said: dict[int, dict[str, Any] | None] = {}
        numbers = [question.interaction_id for question in questions]
        with session(write=False) as db:
            for start in range(0, len(numbers), BATCH):
                wanted = among(db, Interaction.id, numbers[start : start + BATCH])
                for number, response in db.execute(select(Interaction.id, Interaction.response).where(wanted)):
                    said[number] = answer_of(response)
        found = [said.get(number) for number in numbers]
        return [Answer(message, reason="" if message else UNUSABLE) for message in found]
