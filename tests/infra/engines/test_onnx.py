"""A classifier in ONNX Runtime: the label it is surest of, or none."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.engines import load
from infra.engines.engine import ABSTAINED
from infra.settings import SetupError
from tests.models import LABELS, PREFIX, WORDS

Make = Callable[..., Path]


def ask(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def softmax(text: str) -> Any:
    logits = np.sum([WORDS[word] for word in text.split()], axis=0)
    return np.exp(logits) / np.exp(logits).sum()


def test_the_surest_label_is_the_answer_and_a_call_is_made(labelled: Make) -> None:
    engine = load(labelled())
    assert engine.name == "onnx"
    order, refund, track = engine.chat([ask("order"), ask("and refund"), ask("track and order")])
    assert (order.message, order.finish_reason) == ({"role": "assistant", "content": "shipping"}, "stop")
    assert refund.message["content"] == "money" and refund.prompt_tokens == 2
    assert order.probability == pytest.approx(softmax("order")[0], rel=1e-5)
    (call,) = track.message["tool_calls"]
    assert (call["function"], track.finish_reason) == (LABELS[2]["tool_calls"][0]["function"], "tool_calls")
    assert call["id"].startswith("call_") and min(r.completion_tokens for r in (order, refund, track)) > 0
    engine.close()


def test_probabilities_do_not_depend_on_what_is_asked_beside(labelled: Make) -> None:
    engine: Any = load(labelled())
    texts = ["order", "and refund and and", "track and order"]
    together = engine.probabilities([engine.reader.ids(text) for text in texts])
    np.testing.assert_allclose(together, [softmax(text) for text in texts], rtol=1e-5)
    replies = [[r.message.get("content") for r in engine.chat([ask(t) for t in texts], parallel=n)] for n in (1, 3)]
    assert replies[0] == replies[1]
    engine.close()


@pytest.mark.parametrize(("text", "threshold", "answered"), [
    ("order", 0.5, True), ("and", 0.5, False), ("and", 0.3, True), ("and", 0.0, True),
    ("order refund", 0.45, True), ("order refund", 0.5, False),
])  # fmt: skip
def test_what_is_less_sure_than_the_threshold_is_no_answer(
    labelled: Make, text: str, threshold: float, answered: bool
) -> None:
    engine = load(labelled(threshold=threshold))
    (reply,) = engine.chat([ask(text)])
    assert (reply.finish_reason == "stop") == answered == (softmax(text).max() >= threshold)
    assert (reply.completion_tokens > 0) == answered and (reply.finish_reason == ABSTAINED) != answered
    engine.close()


def test_a_request_that_is_not_only_text_gets_no_answer_however_low_the_threshold(labelled: Make) -> None:
    engine = load(labelled(threshold=0.0))
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    seen = {"messages": [{"role": "user", "content": [{"type": "text", "text": "order"}, image]}]}
    first, second = engine.chat([seen, ask("order")])
    assert (first.finish_reason, second.message["content"]) == (ABSTAINED, "shipping")
    engine.close()


def test_the_baked_prefix_is_not_read(labelled: Make) -> None:
    engine = load(labelled())
    messages, tools = PREFIX.restore([{"role": "user", "content": "refund"}])
    read = engine.strip({"messages": messages, "tools": tools})
    assert read is not None and engine.chat([read])[0].prompt_tokens == 1
    assert engine.strip(ask("refund")) is None
    engine.close()


def test_a_broken_file_and_a_missing_package_are_named(labelled: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = labelled()
    (folder / "model.onnx").write_bytes(b"not this")
    with pytest.raises(SetupError, match=r"cannot load .*model\.onnx.*quantize the student again"):
        load(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError, match=r"pip install 'flywheel\[onnx\]'"):
        load(folder)
