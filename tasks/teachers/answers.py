"""What a teacher is asked and what it answers."""

from typing import Any, NamedTuple

GIVEN_UP = "the teacher failed again and again"
UNUSABLE = "the teacher gave no usable answer"


class Question(NamedTuple):
    """A request as the application sent it, and the interaction that it is of."""

    interaction_id: int
    request: dict[str, Any]


class Answer(NamedTuple):
    """What came of a question.

    Attributes:
        message: The assistant message; None where there is none, and `reason` says why.
        logprobs: What the teacher thought of each token of the message (`tasks/teachers/logprobs.py`).
    """

    message: dict[str, Any] | None
    finish_reason: str | None = None
    logprobs: list[Any] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str = ""


def whole(request: dict[str, Any]) -> dict[str, Any]:
    """A logged request, to be asked again: for one answer, in one piece."""
    return {name: said for name, said in request.items() if name != "n" and not name.startswith("stream")}
