from tasks.metrics import ExactMatch
from tasks.metrics.exact_match import words
from tests.tasks.metrics.test_tool_call import calling, saying, value


def test_only_white_space_around_the_words_is_free() -> None:
    assert value(ExactMatch(), saying(" yes \n"), saying("yes"))
    assert not value(ExactMatch(), saying("y es"), saying("yes"))
    assert not value(ExactMatch(), saying("Yes"), saying("yes"))


def test_calls_must_be_written_the_same() -> None:
    one, two = ("f", '{"n": 1}'), ("g", "{}")
    assert value(ExactMatch(), calling(one, two), calling(one, two))
    assert not value(ExactMatch(), calling(two, one), calling(one, two))
    assert not value(ExactMatch(), calling(("f", '{"n":1}')), calling(one))
    assert not value(ExactMatch(), calling(one, content="Looking."), calling(one))


def test_words_of_content_parts_and_of_nothing() -> None:
    assert words({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}) == "ab"
    assert words({"content": None}) == words({}) == ""
