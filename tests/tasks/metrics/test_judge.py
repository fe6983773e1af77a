"""The judge is a real endpoint that says what a test tells it to."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import TypeAdapter, ValidationError

from infra.database.session import session
from infra.database.tables import Interaction, now
from infra.settings import SetupError
from tasks.metrics import Answered, Judge, MetricSpec
from tasks.metrics.judge import verdict
from tasks.teachers.tally import BudgetSpent
from tests.conftest import living_in
from tests.tasks.metrics.test_tool_call import calling, saying
from tests.tasks.teachers.server import refusal, said, serving


def asked(*answers: dict[str, Any], expected: str = "expected") -> list[Answered]:
    made = [
        Interaction(
            source="test", external_id=uuid4().hex, workload="w", conversation="c", at=now(), request={}, response={}
        )
        for _ in answers
    ]
    with session() as db:
        db.add_all(made)
        db.flush()
        numbers = [one.id for one in made]
    messages = [{"role": "user", "content": "the question"}]
    return [
        Answered({"interaction_id": number, "messages": messages, "expected": saying(expected)}, answer)
        for number, answer in zip(numbers, answers, strict=True)
    ]


def prefers(good: str) -> Any:
    """A judge that goes by a word in an answer, whichever side it is on."""

    def reply(question: str, _: int) -> Any:
        a, b = question.split("# Answer A")[1].split("# Answer B")
        mine = (good in a) - (good in b)
        return said(f"I compared them.\n[[{'A' if mine > 0 else 'B' if mine < 0 else 'TIE'}]]")

    return reply


def test_each_answer_is_compared_twice_and_sides_are_swapped(home: Path) -> None:
    with serving(prefers("splendid")) as endpoint:
        judge = Judge(endpoint.url, "m")
        items = asked(saying("splendid"), saying("other"), saying("expected"))
        assert [s.value for s in judge.scores(items)] == [1.0, 0.5, 0.5]
        assert len(endpoint.asked) == 4, "what says the same is not asked about"
        assert endpoint.asked[0]["model"] == "m" and endpoint.asked[0]["temperature"] == 0
        assert judge.scores(items)[0].value == 1.0 and len(endpoint.asked) == 4, "nor is anything asked twice"
        assert judge.scores(asked(calling(("f", {"x": "splendid"}))))[0].value == 1.0, "calls are shown"


def test_a_judge_that_goes_by_the_side_finds_both_as_good(home: Path) -> None:
    with serving(lambda *_: said("[[A]]")) as endpoint:
        assert [s.value for s in Judge(endpoint.url, "m").scores(asked(saying("one"), saying("two")))] == [0.5, 0.5]


@pytest.mark.parametrize("said_", ["10", "[[A]] or [[B]]", "A", "[[C]]", "[[A]]\nbecause", "I choose [[A]]"])
def test_a_judgement_that_cannot_be_read_is_an_error_and_no_score(home: Path, said_: str) -> None:
    assert verdict(saying(said_)) == ""
    with serving(lambda *_: said(said_)) as endpoint:
        with pytest.raises(SetupError, match=r"judge m gave no verdict that can be read on 2 of 2 questions"):
            Judge(endpoint.url, "m").scores(asked(saying("x")))
        assert len(endpoint.asked) == 4, "it is asked once more"


def test_what_could_not_be_read_is_asked_once_more(home: Path) -> None:
    def reply(question: str, _: int) -> Any:
        return said("**[[B]]**" if question.startswith("End with") else "The second.")

    with serving(reply) as endpoint:
        assert Judge(endpoint.url, "m").scores(asked(saying("x")))[0].value == 0.5
        assert [m["role"] for m in endpoint.asked[-1]["messages"]] == ["user", "assistant", "user"]


def test_a_judge_that_refuses_is_named_and_its_key_is_sent_and_not_told(tmp_path: Path) -> None:
    with living_in(tmp_path / "home", JUDGE_KEY="sk-secret"), serving(lambda *_: refusal(401, "sk-secret")) as endpoint:
        with pytest.raises(SetupError, match=r"judge .* refuses to be asked \(401 \*\*\*\).*FLYWHEEL_JUDGE_KEY"):
            Judge(endpoint.url, "m").scores(asked(saying("x")))
        assert endpoint.headers["authorization"] == "Bearer sk-secret"


def test_it_is_on_the_menu() -> None:
    menu: TypeAdapter[Any] = TypeAdapter(MetricSpec)
    assert menu.validate_python({"name": "judge", "url": "http://x/v1", "model": "m"}) == Judge("http://x/v1", "m")
    for wrong in ({"name": "judge", "model": "m", "url": "x"}, {"name": "judge"}, {"name": "bleu"}):
        with pytest.raises(ValidationError):
            menu.validate_python(wrong)


def test_a_judge_costs_no_more_than_its_budget(home: Path) -> None:
    with serving(lambda *_: said("[[A]]")) as endpoint:
        judge = Judge(endpoint.url, "m", prompt_price=20000, completion_price=40000, budget=0.5, parallel=1)
        with pytest.raises(BudgetSpent, match=r"the judge's budget of 0.5 USD.*or raise the judge's `budget`"):
            judge.scores(asked(saying("x")))
        assert len(endpoint.asked) == 1
        with pytest.raises(SetupError, match="no price is known; set `prompt_price`"):
            Judge(endpoint.url, "m", budget=1).scores(asked(saying("y")))
