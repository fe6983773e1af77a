"""What a teacher answered goes with its interaction, and holds nothing that is not stored otherwise."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from sqlalchemy import select, update

from infra.database.session import session
from infra.database.tables import Interaction, TeacherAnswer
from infra.privacy.pseudonyms import TOKEN
from infra.settings import settings
from tasks.forget import forget
from tasks.retention import prune
from tasks.teachers import LocalTeacher, Question
from tasks.teachers.answers import Answer
from tasks.teachers.cache import recall, store
from tests.tasks.teachers.server import said, serving, teacher
from tests.tasks.teachers.test_openai import questions, texts

SECRET = "ann-7f3a9c51"


def left() -> list[str]:
    with session(write=False) as db:
        return sorted(message["content"] for message in db.scalars(select(TeacherAnswer.message)))


def test_what_is_forgotten_or_pruned_takes_its_answers_along(database: str) -> None:
    asked = questions(4)
    with session() as db:
        db.execute(update(Interaction).where(Interaction.id == asked[0].interaction_id).values(client=SECRET))
        old = datetime.now(UTC) - timedelta(days=9)
        db.execute(update(Interaction).where(Interaction.id == asked[1].interaction_id).values(at=old))
    with serving(lambda question, _: said(f"{question} {SECRET}")) as endpoint:
        teacher(endpoint).answer(asked)
        assert len(left()) == 4
        forget(client=SECRET)
        assert left() == [f"q{n} {SECRET}" for n in (1, 2, 3)]
        prune(date.today() - timedelta(days=2))
        assert left() == [f"q{n} {SECRET}" for n in (2, 3)]
        forget(interaction="r2")
        forget(interaction="r3")
        assert left() == []
        files = b"".join(file.read_bytes() for file in settings().home.rglob("*") if file.is_file())
        assert SECRET.encode() not in files


def test_an_answer_to_what_was_erased_in_the_meantime_is_not_kept(database: str) -> None:
    [gone, stays] = questions(2)
    forget(interaction="r0")
    answer = Answer({"role": "assistant", "content": "x"}, "stop", [["x", -0.5, []]], 3, 1)
    store({"a" * 64: (gone.interaction_id, answer), "b" * 64: (stays.interaction_id, answer)})
    store({"b" * 64: (stays.interaction_id, answer._replace(prompt_tokens=4))})
    assert recall(["a" * 64, "b" * 64]) == {"b" * 64: answer}


def test_an_answer_is_redacted_as_a_logged_one_is_and_then_has_no_logprobs(home: Path) -> None:
    def entry(token: str) -> dict[str, object]:
        return {"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []}

    pieces = {"q0": ["Write to ", "bob", "@example.com"], "q1": ["Write ", "to us"]}

    def reply(question: str, _: int):  # type: ignore[no-untyped-def]
        spelled = pieces[question]
        return said("".join(spelled), logprobs={"content": [entry(token) for token in spelled]})

    with serving(reply) as endpoint:
        asked = questions(2)
        for _ in range(2):  # fresh, and from the database
            first, second = teacher(endpoint).answer(asked)
            assert first.message and TOKEN.search(first.message["content"]) and first.logprobs is None
            assert second.logprobs == [["Write ", -0.1, []], ["to us", -0.1, []]]
        assert len(endpoint.asked) == 2


def test_a_local_teacher_is_asked_once_too(home: Path, bare: Path) -> None:
    with session() as db:
        row = Interaction(
            source="t", external_id="1", workload="w", conversation="c", at=datetime.now(UTC), response={},
            request={"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True},
        )  # fmt: skip
        db.add(row)
    one, other = LocalTeacher(str(bare)), LocalTeacher(str(bare))
    first = one.answer([Question(row.id, row.request)])
    assert other.answer([Question(row.id, row.request)]) == first and texts(first) != [None]
    assert (one.tally.asked, other.tally.asked, other.tally.recalled) == (1, 0, 1)
