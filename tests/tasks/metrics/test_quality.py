from tasks.metrics import Quality
from tests.tasks.metrics.test_tool_call import calling, saying, value


def test_words_beside_a_due_call_are_free() -> None:
    due = calling(("f", {"n": 1}), content="Let me look.")
    assert value(Quality(), calling(("f", {"n": 1.0})), due)
    assert not value(Quality(), calling(("f", {"n": 2}), content="Let me look."), due)


def test_due_words_must_be_the_same_and_alone() -> None:
    assert value(Quality(), saying(" card_arrival\n"), saying("card_arrival"))
    assert not value(Quality(), saying("card_linking"), saying("card_arrival"))
    assert not value(Quality(), calling(("f", {}), content="card_arrival"), saying("card_arrival"))
