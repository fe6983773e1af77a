from tasks.metrics.exact_match import exact_match, words
from tests.tasks.metrics.test_tool_call import calling, saying


def test_only_white_space_around_the_words_is_free() -> None:
    assert exact_match(saying(" yes \n"), saying("yes"))
    assert not exact_match(saying("y es"), saying("yes"))
    assert not exact_match(saying("Yes"), saying("yes"))


def test_calls_must_be_written_the_same() -> None:
    one, two = ("f", '{"n": 1}'), ("g", "{}")
    assert exact_match(calling(one, two), calling(one, two))
    assert not exact_match(calling(two, one), calling(one, two))
    assert not exact_match(calling(("f", '{"n":1}')), calling(one))
    assert not exact_match(calling(one, content="Looking."), calling(one))


def test_words_of_content_parts_and_of_nothing() -> None:
    assert words({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}) == "ab"
    assert words({"content": None}) == words({}) == ""
