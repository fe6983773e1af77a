"""Conversations as tokens and back: the one place that knows how a model reads a request and writes a call.

Training, calibration and serving all render through here, so a student reads in production exactly what it was
trained on. Calls are written as ``<tool_call>{"name": …, "arguments": …}</tool_call>``, the form of Qwen, Hermes and
the seedlings.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from infra.prefix import text_of
from infra.settings import SetupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

# For base models, which come without a template: one line a turn, calls as JSON.
PLAIN_TEMPLATE = (
    "{%- if tools %}{{ 'tools: ' + tools | tojson + '\\n' }}{%- endif %}"
    "{%- for message in messages %}{{ message.role + ': ' }}"
    "{%- if message.content %}{{ message.content }}{%- endif %}"
    "{%- if message.tool_calls %}{%- for call in message.tool_calls %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{ (eos_token if message.role == 'assistant' else '') + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant: ' }}{%- endif %}"
)

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def load_tokenizer(path: Path | str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder or hub id, with a chat template and a pad token.

    Raises:
        SetupError: There is none, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path))
    except Exception as problem:  # transformers raises a dozen kinds for "there is none"
        raise SetupError(
            f"model {str(path)!r} has no tokenizer ({str(problem).strip().splitlines()[0][:160]}); "
            "give a folder with tokenizer.json, a hub id, or `seedling`"
        ) from problem
    if tokenizer.eos_token_id is None:
        raise SetupError(f"the tokenizer of {str(path)!r} has no eos_token; add one to its tokenizer_config.json")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[Message],
    tools: list[dict[str, Any]] | None = None,
    prompt: bool = False,
) -> list[int]:
    """Ids of a conversation; with `prompt`, up to where the assistant begins to speak."""
    plain = [_for_template(message) for message in messages]
    text = tokenizer.apply_chat_template(plain, tools=tools or None, add_generation_prompt=prompt, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _for_template(message: Message) -> Message:
    """The message as templates expect it: content a string, each call's arguments an object where they parse."""
    plain = {**message, "content": text_of(message.get("content")) or ""}
    if not message.get("tool_calls"):
        plain.pop("tool_calls", None)
        return plain
    plain["tool_calls"] = [
        {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return plain


def _object(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def parse(text: str) -> Message:
    """What a model wrote, as an assistant message. A call that is no JSON object with a name stays text."""
    calls = []
    for match in _CALL.finditer(text):
        try:
            called = json.loads(match[1])
            name, arguments = called["name"], called.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"role": "assistant", "content": text.strip()}
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": str(name), "arguments": written}
        calls.append({"id": f"call_{uuid4().hex[:12]}", "type": "function", "function": function})
    words = _CALL.sub("", text).strip()
    if not calls:
        return {"role": "assistant", "content": words}
    return {"role": "assistant", "content": words or None, "tool_calls": calls}
