"""An endpoint that fails in every way, asked in parallel: what is asked, how often, what is kept and what it costs."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from infra.database.session import session
from infra.database.tables import Interaction, TeacherAnswer, now
from infra.settings import SetupError, settings
from tasks.teachers import Answer, EndpointTeacher, Question
from tasks.teachers.answers import GIVEN_UP
from tasks.teachers.pace import TRIES
from tasks.teachers.tally import BudgetSpent
from tests.conftest import living_in
from tests.tasks.teachers.server import Imagined, Reply, refusal, said, serving, teacher

KEY = "sk-very-secret-1234"


def questions(n: int, first: int = 0) -> list[Question]:
    """Questions of interactions that are there: "q0", "q1" ..."""
    made = [
        Interaction(
            source="test", external_id=f"r{i}", workload="w", conversation=f"c{i}", at=now(), response={},
            request={"model": "gpt-x", "messages": [{"role": "user", "content": f"q{i}"}], "stream": True, "n": 2},
        )
        for i in range(first, first + n)
    ]  # fmt: skip
    with session() as db:
        db.add_all(made)
    return [Question(row.id, row.request) for row in made]


def texts(answers: list[Answer]) -> list[str | None]:
    return [answer.message["content"] if answer.message else None for answer in answers]


def kept() -> int:
    with session(write=False) as db:
        return db.scalar(select(func.count()).select_from(TeacherAnswer)) or 0


def test_answers_come_in_order_and_are_asked_for_once(database: str) -> None:
    asked = questions(30)
    told: list[tuple[int, int, str]] = []
    with serving(lambda question, _: said(f"a of {question}")) as endpoint:
        one = teacher(endpoint)
        answers = one.answer([*asked, asked[3]], lambda *step: told.append(step))
        assert texts(answers) == [f"a of q{n}" for n in [*range(30), 3]] and len(endpoint.asked) == 30
        assert all(body.keys() == {"model", "messages", "stream"} and not body["stream"] for body in endpoint.asked)
        assert told[-1] == (30, 30, "teacher answers")
        again = teacher(endpoint)
        assert again.answer(asked) == answers[:30] and len(endpoint.asked) == 30
        assert again.tally.report() == {"asked": 0, "recalled": 30, "prompt_tokens": 0, "completion_tokens": 0}
        assert one.tally.report()["completion_tokens"] == 150
        other = teacher(endpoint, model="newer")
        assert other.answer(asked[:2]) == answers[:2] and len(endpoint.asked) == 32, "another model is another teacher"


def test_so_many_are_under_way_and_never_more(home: Path) -> None:
    together = threading.Barrier(3)

    def reply(question: str, _: int) -> Reply:
        together.wait(10)  # broken, if fewer than three come at a time
        return said("yes")

    with serving(reply) as endpoint:
        assert texts(teacher(endpoint, parallel=3).answer(questions(9))) == ["yes"] * 9
        assert endpoint.most == 3


@pytest.mark.parametrize(
    "failure",
    [
        refusal(500), refusal(502), refusal(503, **{"retry-after": "30"}), refusal(429, **{"retry-after": "30"}),
        refusal(408), Reply(200), Reply(200, b"<html>"), Reply(200, {"error": {"message": "overloaded"}}),
        Reply(200, {"choices": []}), Reply(200, b'{"choices": [{"mess', declared=99), Reply(200, b"{}", delay=1.0),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body)[:12]}",
)  # fmt: skip
def test_what_passes_is_tried_again_after_a_pause(home: Path, failure: Reply) -> None:
    pace = Imagined()
    with serving(lambda _, tried: failure if tried < 3 else said("at last")) as endpoint:
        asking = teacher(endpoint, pace, timeout=0.4)
        assert texts(asking.answer(questions(1))) == ["at last"]
        assert len(endpoint.asked) == 3 and asking.tally.reasons == {}
    least = 60 if "retry-after" in failure.headers else 1 + 2
    assert least <= pace.turns[-1] <= least + 6, "two pauses, doubled, or what the endpoint asks for"


def test_what_an_endpoint_wants_to_be_left_alone_for_counts_for_all(home: Path) -> None:
    pace = Imagined()
    first = threading.Event()

    def reply(question: str, tried: int) -> Reply:
        if question == "q0" and tried == 1:
            first.set()
            return refusal(429, **{"retry-after": "100"})
        assert first.wait(10)
        return said("yes")

    with serving(reply) as endpoint:
        teacher(endpoint, pace, parallel=1).answer(questions(5))
    assert pace.turns[0] == 0 and min(pace.turns[1:]) >= 100
    with serving(lambda *_: refusal(429, **{"retry-after": "7200"})) as endpoint:
        with pytest.raises(SetupError, match="wants to be asked again in 7200 s"):
            teacher(endpoint, Imagined()).answer(questions(1, 10))
        assert len(endpoint.asked) == 1


def test_a_refused_request_is_one_row_without_an_answer(database: str) -> None:
    filtered = refusal(400, "The prompt was filtered", "content_filter")
    asked = questions(12)

    def reply(question: str, _: int) -> Reply:
        return {"q2": filtered, "q5": refusal(413), "q7": refusal(422, "bad\nvalue", 7)}.get(question, said("yes"))

    with serving(reply) as endpoint:
        asking = teacher(endpoint)
        answers = asking.answer(asked)
        assert texts(answers).count("yes") == 9 and len(endpoint.asked) == 12
        reasons = {n: answer.reason for n, answer in enumerate(answers) if answer.reason}
        assert reasons == {n: f"the teacher refused: {why}" for n, why in ((2, "content_filter"), (5, 413), (7, 422))}
        assert asking.tally.report()["unanswered"] == {reason: 1 for reason in reasons.values()}
        assert kept() == 9, "a refusal is none: it is asked again"


def test_a_request_that_fails_for_good_is_given_up_and_a_dead_endpoint_stops_the_stage(home: Path) -> None:
    asked = questions(20)
    with serving(lambda question, _: refusal(500, "boom") if question == "q4" else said("yes")) as endpoint:
        answers = teacher(endpoint, parallel=2).answer(asked[:10])
        assert [answer.reason for answer in answers].count(GIVEN_UP) == 1 and endpoint.times["q4"] == TRIES
    with serving(lambda *_: refusal(503, f"down, {KEY}")) as endpoint:
        with pytest.raises(SetupError, match=r"failed 3 requests in a row, 6 tries each \(503 down, \*\*\*\)"):
            teacher(endpoint, parallel=1, key=KEY).answer(asked)
        assert len(endpoint.asked) == 3 * TRIES
    with pytest.raises(SetupError, match=r"failed 3 requests in a row.*ConnectError"):
        teacher(endpoint).answer(asked)  # nobody listens there any more


@pytest.mark.parametrize(
    "reply",
    [
        refusal(401, f"Incorrect API key: {KEY}"), refusal(402), refusal(403), refusal(404, "no such model"),
        refusal(429, "You exceeded your quota", "insufficient_quota"),
        Reply(308, b"", {"location": "https://elsewhere.example/v1"}),
    ],
    ids=lambda reply: str(reply.status),
)  # fmt: skip
def test_who_may_not_ask_stops_at_once_and_the_key_is_never_told(
    home: Path, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with serving(lambda *_: reply) as endpoint:
        with pytest.raises(SetupError, match=rf"refuses to be asked \({reply.status} ") as problem:
            teacher(endpoint, parallel=2, key=KEY).answer(questions(40))
        assert len(endpoint.asked) <= 2 and endpoint.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(problem.value) + repr(problem.value) + caplog.text and kept() == 0


def test_an_endpoint_that_refuses_whatever_it_is_asked_stops_the_stage(home: Path) -> None:
    with serving(lambda *_: refusal(400, "unknown parameter: n")) as endpoint:
        with pytest.raises(SetupError, match=r"it refused the first 20: 400 unknown parameter: n"):
            teacher(endpoint, parallel=1).answer(questions(60))
        assert len(endpoint.asked) == 20


def test_what_was_answered_when_it_stopped_is_kept_and_so_is_what_was_under_way(database: str) -> None:
    together = threading.Barrier(4)

    def reply(question: str, _: int) -> Reply:
        together.wait(10)
        return said("yes")

    asked = questions(12)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with serving(reply) as endpoint:
        with pytest.raises(KeyboardInterrupt):
            teacher(endpoint, parallel=4).answer(asked, interrupt)
        assert kept() == len(endpoint.asked) == 4
        teacher(endpoint, parallel=4).answer(asked)
        assert len(endpoint.asked) == 12


KILLED = """
import sys
from tasks.teachers import Question, teacher_for
from sqlalchemy import select
from infra.database.session import session
from infra.database.tables import Interaction
with session(write=False) as db:
    rows = list(db.scalars(select(Interaction).order_by(Interaction.id)))
teacher_for("w").answer([Question(row.id, row.request) for row in rows])
"""


def test_a_killed_run_is_gone_on_with_where_it_was(database: str) -> None:
    """One request at a time: the seventh kills the run, and is the only one that is asked twice."""
    asked = questions(20)
    child: list[subprocess.Popen[bytes]] = []

    def reply(question: str, tried: int) -> Reply:
        if question == "q6" and tried == 1:
            os.kill(child[0].pid, signal.SIGKILL)
        return said("yes")

    with serving(reply) as endpoint:
        chosen = {"HOME": str(settings().home), "DATABASE": database, "TEACHER": endpoint.url, "TEACHER_PARALLEL": "1"}
        environment = {**os.environ, **{f"FLYWHEEL_{name}": value for name, value in chosen.items()}}
        child.append(subprocess.Popen([sys.executable, "-c", KILLED], env=environment, cwd=Path(__file__).parents[3]))
        assert child[0].wait(120) == -signal.SIGKILL
        assert len(endpoint.asked) == 7 and kept() == 6
        assert texts(teacher(endpoint).answer(asked)) == ["yes"] * 20
        assert len(endpoint.asked) == 21 and endpoint.times["q6"] == 2


def test_no_minute_has_more_requests_than_it_may_have(home: Path) -> None:
    pace = Imagined(30)
    with serving(lambda _, tried: refusal(500) if tried < 2 else said("yes")) as endpoint:
        teacher(endpoint, pace, parallel=4).answer(questions(25))
        assert len(endpoint.asked) == len(pace.turns) == 50
    turns = sorted(pace.turns)
    assert all(late - early >= 60 for early, late in zip(turns, turns[30:], strict=False))


PRICES = {"TEACHER_PROMPT_PRICE": "20000", "TEACHER_COMPLETION_PRICE": "40000"}  # 0.4 USD an answer


def test_a_budget_is_kept_to_the_answer_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with (
        serving(lambda *_: said("yes")) as endpoint,
        living_in(tmp_path / "home", TEACHER=endpoint.url, TEACHER_BUDGET="2", **PRICES),
    ):
        asked = questions(12)
        for whole in (5, 10):
            with pytest.raises(BudgetSpent, match=r"budget of 2 USD.* 5 answers cost 2 USD and are kept; run again"):
                teacher(endpoint, parallel=4).answer(asked)
            assert len(endpoint.asked) == kept() == whole
        last = teacher(endpoint, parallel=4)
        assert texts(last.answer(asked)) == ["yes"] * 12
        assert last.tally.report() == {
            "asked": 2, "recalled": 10, "prompt_tokens": 20, "completion_tokens": 10, "cost_usd": 0.8
        }  # fmt: skip


def test_a_budget_holds_over_all_that_a_stage_asks_and_without_usage_there_is_none(tmp_path: Path) -> None:
    with living_in(tmp_path / "home", TEACHER_BUDGET="1", **PRICES), serving(lambda *_: said("yes")) as endpoint:
        asking = teacher(endpoint)
        asked = questions(6)
        asking.answer(asked[:2])
        with pytest.raises(BudgetSpent):
            asking.answer(asked[2:])
        assert len(endpoint.asked) == 2
        bare = Reply(200, {"choices": [{"message": {"content": "yes"}}]})
        endpoint.reply = lambda *_: bare
        with pytest.raises(SetupError, match="no `usage`"):
            teacher(endpoint).answer(asked[2:])
        assert len(endpoint.asked) == 3, "the first is waited for"
    with living_in(tmp_path / "home", TEACHER_BUDGET="1"), pytest.raises(SetupError, match="no price is known"):
        EndpointTeacher.of(settings())


def test_an_address_with_a_password_and_a_key_with_a_newline(tmp_path: Path) -> None:
    with living_in(tmp_path / "home", TEACHER="http://ann:pass@host/v1?token=t", TEACHER_KEY=f" {KEY}\n"):
        made = EndpointTeacher.of(settings())
        assert made.name == made.shown == "http://host/v1" and made.key == KEY and KEY not in repr(made)
    with living_in(tmp_path / "home", TEACHER_KEY=f"{KEY}\nx"), pytest.raises(SetupError) as problem:
        EndpointTeacher.of(settings())
    assert KEY not in str(problem.value)


def test_an_endpoint_without_logprobs_is_asked_without_and_it_is_said(home: Path) -> None:
    def reply(question: str, _: int) -> Reply:
        last = next(b for b in reversed(endpoint.asked) if b["messages"][-1]["content"] == question)
        return refusal(400, "logprobs are not supported") if "logprobs" in last else said("yes")

    with serving(reply) as endpoint:
        asking = teacher(endpoint, parallel=1, logprobs=5)
        asked = questions(6)
        assert texts(asking.answer(asked)) == ["yes"] * 6
        assert len(endpoint.asked) == 7 and endpoint.asked[0]["top_logprobs"] == 5
        assert asking.tally.report()["logprobs"] == "refused by the endpoint"
        teacher(endpoint, logprobs=5).answer(asked)
        assert len(endpoint.asked) == 7, "what it gave without them is kept"


def test_a_request_is_sent_whatever_characters_it_has(home: Path) -> None:
    with serving(lambda *_: said("yes")) as endpoint:
        [plain] = questions(1)
        odd = {"model": "m", "messages": [{"role": "user", "content": "\ud83d half, \u2028 and ü"}]}
        assert texts(teacher(endpoint).answer([plain._replace(request=odd)])) == ["yes"]
        assert endpoint.asked[0]["messages"] == odd["messages"]
