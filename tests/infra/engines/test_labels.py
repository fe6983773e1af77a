"""What an encoder reads of a request, and labels as answers."""

from pathlib import Path
from typing import Any

import pytest

from infra.engines.labels import Reader, answer_of, label_of, said
from infra.settings import SetupError
from tests.models import TOOL

USER = {"role": "user", "content": "where is it"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "track_order", "arguments": '{"id": 7}'}}


@pytest.mark.parametrize(("request_", "text"), [
    ({"messages": [USER]}, "where is it"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "where"}, {"type": "text", "text": "?"}]}]},
     "where?"),
    ({"messages": [{"role": "system", "content": "Be brief."}, USER]}, "system: Be brief.\nuser: where is it"),
    ({"messages": [USER], "tools": [TOOL]}, "tools: track_order\nuser: where is it"),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                   {"role": "tool", "content": "lost"}]},
     'user: where is it\nassistant: track_order {"id": 7}\ntool: lost'),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
])  # fmt: skip
def test_what_a_request_says(request_: dict[str, Any], text: str | None) -> None:
    assert said(request_) == text


def test_an_answer_is_its_label_again_but_for_the_ids_of_its_calls() -> None:
    words = {"role": "assistant", "content": "  card_arrival\n"}
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    assert answer_of(label_of(words)) == {"role": "assistant", "content": "card_arrival"}
    first, again = answer_of(label_of(calls)), answer_of(label_of(calls))
    assert first["content"] is None and [c["function"] for c in first["tool_calls"]] == 2 * [CALL["function"]]
    assert len({c["id"] for c in first["tool_calls"] + again["tool_calls"]}) == 4
    assert label_of(first) == label_of(calls) == label_of(answer_of(label_of(calls)))


def test_the_end_of_what_is_too_long_is_read_and_short_ones_are_padded(labelled: Any) -> None:
    reader = Reader(labelled(), max_length=3)
    assert reader.ids("order refund order parcel track") == [1, 2, 4]
    batch = reader.batch([reader.ids("parcel"), reader.ids("order refund")])
    assert batch["input_ids"].tolist() == [[2, 0], [1, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=rf"{tmp_path}.*has no tokenizer\.json.*give another encoder"):
        Reader(tmp_path, 8)
