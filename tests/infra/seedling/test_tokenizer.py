"""The seedlings' tokenizer: a span has the same tokens wherever it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import SEEDLING

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(SEEDLING / "student")


@pytest.mark.parametrize(
    "value", ["Boston", "48213", "ben.novak@example.com", "12 Elm Street, Lyon", "HELLO-77", "2026-03-05"]
)
def test_a_value_in_json_has_the_tokens_it_has_in_the_message(tokenizer, value: str) -> None:
    plain = tokenizer(value, add_special_tokens=False)["input_ids"]
    said = tokenizer(f"it is {value} now", add_special_tokens=False)["input_ids"]
    answered = tokenizer(f'{{"a":"{value}"}}', add_special_tokens=False)["input_ids"]
    for whole in (said, answered):
        assert any(whole[i : i + len(plain)] == plain for i in range(len(whole)))


@given(st.text(max_size=200))
def test_text_survives_the_round_trip(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_call_is_written_as_the_chat_template_says(tokenizer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "track_order", "arguments": {"order_id": "48213"}}}
    messages = [
        {"role": "user", "content": "where is 48213"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|user|>where is 48213<|end|>"
        '<|assistant|><tool_call>{"name":"track_order","arguments":{"order_id":"48213"}}</tool_call><|end|>'
    )
