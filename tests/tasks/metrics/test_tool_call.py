import json
from typing import Any

import pytest

from tasks.metrics import Answered, Metric, ToolCall
from tasks.metrics.tool_call import CallScore, summary


def calling(*made: tuple[str, Any], content: str | None = None) -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": name, "arguments": a if isinstance(a, str) else json.dumps(a)},
        }
        for i, (name, a) in enumerate(made)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def value(metric: Metric, answer: dict[str, Any], expected: dict[str, Any], **row: Any) -> float:
    """What one answer is worth; -1 where the metric says nothing of it."""
    found = metric.score(Answered({"expected": expected, **row}, answer))
    return -1.0 if found is None else found.value


def tool_call(answer: dict[str, Any], expected: dict[str, Any], **row: Any) -> bool:
    return value(ToolCall(), answer, expected, **row) == 1


def parts(answer: dict[str, Any], expected: dict[str, Any]) -> CallScore:
    return ToolCall().parts(Answered({"expected": expected}, answer))


def saying(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


@pytest.mark.parametrize(
    "given, due, same",
    [
        ({"n": 1}, {"n": 1}, True),
        ({"n": 1}, {"n": 1.0}, True),
        ({"n": 1e2}, {"n": 100}, True),
        ({"n": 1}, {"n": "1"}, False),
        ({"n": 1}, {"n": True}, False),
        ({"n": 0}, {"n": False}, False),
        ({"n": None}, {}, False),
        ({"n": "a "}, {"n": " a"}, True),
        ({"n": "A"}, {"n": "a"}, False),
        ({"n": [1, 2]}, {"n": [2, 1]}, False),
        ({"n": {"b": 1, "a": [" x "]}}, {"n": {"a": ["x"], "b": 1.0}}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ("", {}, True),
        ('{ "n" :1}', {"n": 1}, True),
        ('{"n": 1', {"n": 1}, False),
        ('{"n": NaN}', '{"n": NaN}', False),
        ("[1]", "[1]", False),
        ("[" * 100_000, {}, False),
    ],
)
def test_arguments_are_compared_as_json_values(given: Any, due: Any, same: bool) -> None:
    assert tool_call(calling(("f", given)), calling(("f", due))) is same


def test_a_malformed_expected_call_is_matched_by_nothing_not_even_by_itself() -> None:
    broken = calling(("f", '{"n": '))
    assert not tool_call(broken, broken)


def test_arguments_that_came_as_an_object_are_read_as_such() -> None:
    given = calling(("f", {"n": 1}))
    given["tool_calls"][0]["function"]["arguments"] = {"n": 1}
    assert tool_call(given, calling(("f", {"n": 1})))


def test_parallel_calls_may_come_in_any_order_but_each_as_often_as_it_is_due() -> None:
    a, b = ("f", {"n": 1}), ("g", {"n": 2})
    assert tool_call(calling(a, b), calling(b, a))
    assert not tool_call(calling(a), calling(a, b))
    assert not tool_call(calling(a, b, b), calling(a, b))
    assert not tool_call(calling(a, a), calling(a, b))
    assert not tool_call(calling(("f", {"n": 2}), ("g", {"n": 1})), calling(a, b))


def test_where_words_are_due_only_the_abstention_counts() -> None:
    assert tool_call(saying("no"), saying("yes"))
    assert not tool_call(calling(("f", {})), saying("yes"))
    assert not tool_call(saying("f"), calling(("f", {})))


def test_sub_scores_and_their_rates() -> None:
    right, wrong_value, wrong_name = calling(("f", {"n": 1})), calling(("f", {"n": 2})), calling(("g", {"n": 1}))
    scores = [
        parts(right, right),
        parts(wrong_value, right),
        parts(wrong_name, right),
        parts(saying("x"), right),
        parts(saying("x"), saying("y")),
        parts(right, saying("y")),
        parts(saying("x"), saying("x")),
    ]
    assert [s.function for s in scores] == [True, True, False, False, None, None, None]
    assert [s.arguments for s in scores] == [True, False, False, False, None, None, None]
    names = ("call_name", "call_arguments", "call_argument_share", "abstention_precision", "abstention_recall")
    assert summary(scores) == dict(zip(names, (2 / 4, 1 / 4, 1.5 / 4, 2 / 3, 2 / 3), strict=True))
    assert summary([]) == dict.fromkeys(names)


def tool(**properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}


def test_an_argument_that_is_left_out_has_its_default() -> None:
    tools = [tool(n={"type": "integer", "default": 10}, unit={"type": "string"})]
    assert tool_call(calling(("f", {})), calling(("f", {"n": 10})), tools=tools)
    assert not tool_call(calling(("f", {})), calling(("f", {"n": 11})), tools=tools)
    assert not tool_call(calling(("f", {})), calling(("f", {"n": 10})))


def test_a_list_has_no_order_where_its_schema_says_that_items_are_unique() -> None:
    one, other = calling(("f", {"n": [1, 2]})), calling(("f", {"n": [2, 1]}))
    assert tool_call(one, other, tools=[tool(n={"type": "array", "uniqueItems": True})])
    assert not tool_call(one, other, tools=[tool(n={"type": "array"})])


def test_alternatives_mean_the_same() -> None:
    metric = ToolCall(alternatives={"f.by": [["UPS", "ups"], ["post", None]]})
    ups, low, dhl, post, none = (calling(("f", {"by": by} if by else {})) for by in ("UPS", "ups", "DHL", "post", ""))
    assert value(metric, low, ups) == value(metric, post, none) == value(metric, none, post) == 1
    assert value(metric, dhl, ups) == value(metric, none, ups) == 0
    assert value(metric, calling(("g", {"by": "ups"})), calling(("g", {"by": "UPS"}))) == 0, "of f alone"


def test_the_share_of_arguments_pairs_parallel_calls_as_well_as_it_can() -> None:
    due = calling(("f", {"a": 1, "b": 2}), ("f", {"a": 3, "b": 4}))
    assert parts(calling(("f", {"a": 3, "b": 9}), ("f", {"a": 1, "b": 2})), due).share == pytest.approx(5 / 6)
    assert parts(calling(("f", {"a": 1, "b": 2})), due).share == pytest.approx(3 / 6)
    assert parts(saying("no"), due).share == 0
