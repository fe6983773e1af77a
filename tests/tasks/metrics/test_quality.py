from tasks.metrics.quality import quality
from tests.tasks.metrics.test_tool_call import calling, saying


def test_words_beside_a_due_call_are_free() -> None:
    due = calling(("f", {"n": 1}), content="Let me look.")
    assert quality(calling(("f", {"n": 1.0})), due)
    assert not quality(calling(("f", {"n": 2}), content="Let me look."), due)


def test_due_words_must_be_the_same_and_alone() -> None:
    assert quality(saying(" card_arrival\n"), saying("card_arrival"))
    assert not quality(saying("card_linking"), saying("card_arrival"))
    assert not quality(calling(("f", {}), content="card_arrival"), saying("card_arrival"))
