"""Conversations as tokens and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.engines.chat import load_tokenizer, parse, render
from infra.settings import SEEDLING, SetupError


def call(name: str, arguments: dict[str, str]) -> dict:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": "call_0", "type": "function", "function": function}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SEEDLING / "student")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=30), max_size=3))
def test_a_call_that_was_rendered_is_parsed_back(tokenizer, arguments: dict[str, str]) -> None:
    asked = [{"role": "user", "content": "do it"}]
    said = {"role": "assistant", "content": None, "tool_calls": [call("track_order", arguments)]}
    prompt, whole = render(tokenizer, asked, prompt=True), render(tokenizer, [*asked, said])
    assert whole[: len(prompt)] == prompt
    answer = parse(tokenizer.decode(whole[len(prompt) : -1], skip_special_tokens=False))
    (found,) = answer["tool_calls"]
    assert (found["function"]["name"], json.loads(found["function"]["arguments"])) == ("track_order", arguments)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{not json</tool_call>",
        '<tool_call>["a list"]</tool_call>',
        '<tool_call>{"arguments":{}}</tool_call>',
        "just words",
        '<tool_call>{"name":"x"',
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse(text) == {"role": "assistant", "content": text}


def test_calls_written_by_other_models_are_understood() -> None:
    text = (
        'On it.\n<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n<tool_call>{"name": "b"}</tool_call>'
    )
    answer = parse(text)
    assert answer["content"] == "On it."
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in answer["tool_calls"]] == [
        ("a", '{"x": 1}'),
        ("b", "{}"),
    ]


def test_a_base_model_without_template_gets_a_plain_one(bare, tmp_path) -> None:
    import shutil

    for file in bare.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    plain = load_tokenizer(tmp_path)
    text = plain.decode(render(plain, [{"role": "user", "content": "hi"}], prompt=True))
    assert text == "user: hi\nassistant: "


def test_a_folder_without_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(SetupError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
