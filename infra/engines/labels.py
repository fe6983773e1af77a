"""Closed answers: how an encoder reads a request, and how a label becomes an answer.

Training, calibration and serving all read through here, so that a classifier reads in production exactly what it was
trained on. A request of one message is that message's text, as encoders were pretrained; of several, each begins with
its role, and the names of tools that are not baked in come first. What is too long loses its beginning, for the end is
what is asked.

A label is the assistant message that it stands for, without the ids of its calls, which are fresh in every answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from infra.prefix import text_of
from infra.settings import SetupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Message = dict[str, Any]


def said(request: Mapping[str, Any]) -> str | None:
    """What `{"messages", "tools"?}` says, as text; None where a part of it is no text (an image, a sound)."""
    parts = []
    for message in request["messages"]:
        content = text_of(message.get("content"))
        if content is None and message.get("content") is not None:
            return None
        calls = [call["function"] for call in message.get("tool_calls") or []]
        words = [content or "", *(f"{f['name']} {f['arguments']}" for f in calls)]
        parts.append((message["role"], " ".join(word for word in words if word)))
    tools = [tool.get("function", tool).get("name", "") for tool in request.get("tools") or []]
    if len(parts) == 1 and not tools:
        return parts[0][1]
    return "\n".join([*([f"tools: {', '.join(tools)}"] if tools else []), *(f"{role}: {text}" for role, text in parts)])


class Reader:
    """Texts as token ids, by the `tokenizer.json` in a folder.

    Args:
        max_length: Tokens that are read, those that the tokenizer adds included.

    Raises:
        SetupError: There is no tokenizer.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as problem:  # tokenizers raises bare exceptions
            raise SetupError(f"{str(folder)!r} has no tokenizer.json ({problem}); give another encoder") from problem
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction="left")
        config = folder / "config.json"
        self.pad = int((json.loads(config.read_text()) if config.exists() else {}).get("pad_token_id") or 0)

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def batch(self, sequences: Sequence[Sequence[int]]) -> dict[str, "NDArray[np.int64]"]:
        """`input_ids` and `attention_mask`, int64 [b, t], padded on the right."""
        import numpy as np

        width = max(map(len, sequences))
        ids = np.full((len(sequences), width), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        return {"input_ids": ids, "attention_mask": mask}


def label_of(answer: Message) -> Message:
    """The label that an assistant message is an instance of."""
    label: Message = {"role": "assistant", "content": (answer.get("content") or "").strip() or None}
    if answer.get("tool_calls"):
        label["tool_calls"] = [{"type": "function", "function": call["function"]} for call in answer["tool_calls"]]
    return label


def answer_of(label: Message) -> Message:
    """A label as an answer, its calls with ids of their own."""
    if not label.get("tool_calls"):
        return dict(label)
    return {**label, "tool_calls": [{"id": f"call_{uuid4().hex[:12]}", **call} for call in label["tool_calls"]]}


def spoken(label: Message) -> str:
    """What a label says, as text: its words and its calls."""
    return said({"messages": [label]}) or ""
