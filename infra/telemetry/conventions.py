"""Where the messages of a call are, in each convention that instrumentations write, in OpenAI's form.

| convention                       | where the messages are                                                            |
|----------------------------------|-----------------------------------------------------------------------------------|
| OpenTelemetry GenAI from 1.37 on | `gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`,  |
|                                  | `gen_ai.tool.definitions`: on the span as JSON, or on its event                   |
|                                  | `gen_ai.client.inference.operation.details`                                       |
| the same, up to 1.36             | one event a message: `gen_ai.user.message` and the like, `gen_ai.choice`; or two: |
|                                  | `gen_ai.content.prompt`, `gen_ai.content.completion`                              |
| OpenLLMetry (Traceloop)          | `gen_ai.prompt.0.content`, `gen_ai.completion.0.content`, `llm.request.functions` |
| OpenInference (Phoenix)          | `llm.input_messages.0.message.content`, `llm.output_messages…`, `llm.tools…`; or  |
|                                  | `input.value` and `output.value`                                                  |

The first line of which a call has anything is read.

Sources: semantic-conventions 1.41.1 `docs/gen-ai`, 1.36.0 `docs/gen-ai/gen-ai-events.md`; OpenInference
`spec/semantic_conventions.md`; openllmetry `opentelemetry-semantic-conventions-ai`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from infra.database.jsontext import Rejected
from infra.telemetry.otlp import Attributes, Event, parsed

Record = dict[str, Any]
Message = dict[str, Any]

MESSAGE = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
CHOICE = "gen_ai.choice"
PROMPT, COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"

Said = tuple[list[Message], list[tuple[Message, Any]]]
"""The messages that were asked with, and each answer with the reason why it ended."""


def messages(said: Attributes, events: tuple[Event, ...]) -> Said:
    """What was asked and answered, by the first convention of which there is anything; nothing where there is none."""
    return current(said) or by_events(events) or traceloop(said) or openinference(said) or ([], [])


def current(said: Attributes) -> Said | None:
    """OpenTelemetry GenAI, from 1.37 on."""
    asked, answered = (parsed(said.get(f"gen_ai.{way}.messages")) for way in ("input", "output"))
    if asked is None and answered is None:
        return None
    messages = [message for one in _list(asked, "gen_ai.input.messages") for message in of_parts(one)]
    instructions = parsed(said.get("gen_ai.system_instructions"))
    if instructions:
        parts = instructions if isinstance(instructions, list) else [{"type": "text", "content": instructions}]
        messages[:0] = of_parts({"role": "system", "parts": parts})
    answers = [
        (of_parts({"role": "assistant", **one})[-1], one.get("finish_reason"))
        for one in _list(answered, "gen_ai.output.messages")
    ]
    return messages, answers


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise Rejected(f"{what} is no list of messages")
    return value or []


def of_parts(message: Any) -> list[Message]:
    """A message of parts in OpenAI's form; a tool's has one for each response."""
    if not isinstance(message, dict):
        raise Rejected("a message is no object")
    if "parts" not in message:
        return [{key: held for key, held in message.items() if key != "finish_reason"}]
    texts: list[str] = []
    others: list[Record] = []
    calls: list[Record] = []
    responses: list[Message] = []
    for part in _list(message["parts"], "parts"):
        match part.get("type"):
            case "text":
                texts.append(str(part.get("content") or part.get("text") or ""))
            case "tool_call":
                calls.append({"id": part.get("id"), "name": part["name"], "arguments": part.get("arguments") or {}})
            case "tool_call_response":
                answer = part.get("response", part.get("result"))
                responses.append({"role": "tool", "tool_call_id": part.get("id"), "content": _text(answer)})
            case "reasoning" | "thinking":
                continue
            case _:
                others.append(part)
    content: Any = "".join(texts) or None
    if others:
        content = [{"type": "text", "text": text} for text in texts] + others
    rest: list[Message] = []
    if content is not None or calls or not responses:
        name = {"name": message["name"]} if message.get("name") else {}
        said = {"role": message.get("role"), **name, "content": content if content is not None or calls else ""}
        rest = [{**said, **({"tool_calls": calls} if calls else {})}]
    return rest + responses


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def by_events(events: tuple[Event, ...]) -> Said | None:
    """One event a message, or one for all of them: OpenTelemetry GenAI, up to 1.36."""
    asked: list[Message] = []
    answers: list[tuple[Message, Any]] = []
    for event in events:
        said = event.attributes | (event.body if isinstance(event.body, dict) else {})
        if isinstance(content := parsed(said.get("gen_ai.event.content")), dict):
            said |= content
        if sort := MESSAGE.fullmatch(event.name):
            asked.append(_flat({"role": sort[1], **said}))
        elif event.name == CHOICE:
            inner = parsed(said.get("message"))
            message = inner if isinstance(inner, dict) else {"content": said.get("content", inner)}
            whole = {"tool_calls": said.get("tool_calls"), **message, "role": "assistant"}
            answers.append((_flat(whole), said.get("finish_reason")))
        elif event.name == PROMPT:
            asked += _all(said.get("gen_ai.prompt"), "user")
        elif event.name == COMPLETION:
            answers += [(message, None) for message in _all(said.get("gen_ai.completion"), "assistant")]
    return (asked, answers) if asked or answers else None


def _all(said: Any, role: str) -> list[Message]:
    """Messages as JSON, or a text that is one."""
    messages = parsed(said)
    if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
        return [{"role": role, **one} for one in messages]
    return [{"role": role, "content": _text(said)}]


def _flat(said: Message) -> Message:
    """A message with the fields that one has, of what an event says."""
    fields: Record = {"tool_call_id": said.get("id")} if said["role"] == "tool" else {}
    said = {**said, "tool_calls": parsed(said.get("tool_calls"))}
    kept = {key: said.get(key) or fields.get(key) for key in ("name", "tool_calls", "tool_call_id")}
    content = said.get("content")
    content = content if content is None or isinstance(content, str | list) else _text(content)
    return {"role": said["role"], "content": content, **{key: held for key, held in kept.items() if held}}


def traceloop(said: Attributes) -> Said | None:
    asked, answered = nested(said, "gen_ai.prompt"), nested(said, "gen_ai.completion")
    if not asked and not answered:
        return None
    messages = [_numbered(one) for one in _in_order(asked)]
    answers = [(_numbered({"role": "assistant", **one}), one.get("finish_reason")) for one in _in_order(answered)]
    return messages, answers


def _numbered(one: Record) -> Message:
    message = {"role": one.get("role"), "content": one.get("content")}
    if calls := _in_order(one.get("tool_calls")):
        message["tool_calls"] = calls
    if one.get("tool_call_id"):
        message["tool_call_id"] = one["tool_call_id"]
    return message


def openinference(said: Attributes) -> Said | None:
    asked, answered = nested(said, "llm.input_messages"), nested(said, "llm.output_messages")
    if not asked:
        return _values(said)
    return (
        [_inferred(one) for one in _in_order(asked)],
        [(_inferred({"message": {"role": "assistant"} | one["message"]}), None) for one in _in_order(answered)],
    )


def _inferred(one: Record) -> Message:
    message = one["message"]
    content = message.get("content")
    if content is None and message.get("contents"):
        parts = [part["message_content"] for part in _in_order(message["contents"])]
        texts = [part for part in parts if part.get("type") == "text"]
        content = "".join(part["text"] for part in texts) if len(texts) == len(parts) else parts
    said: Message = {
        "role": message.get("role"),
        "content": content if not isinstance(content, dict) else _text(content),
    }
    if calls := [call["tool_call"] for call in _in_order(message.get("tool_calls"))]:
        said["tool_calls"] = [{"id": call.get("id"), "function": call["function"]} for call in calls]
    for key in ("name", "tool_call_id"):
        if message.get(key):
            said[key] = message[key]
    return said


def _values(said: Attributes) -> Said | None:
    """What went in and came out as a whole: a request of OpenAI's form and its response, or text."""
    before, after = said.get("input.value"), said.get("output.value")
    if before is None:
        return None
    request, response = parsed(before), parsed(after)
    asked = request.get("messages") if isinstance(request, dict) else None
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": _text(before)}]
    if isinstance(response, dict) and isinstance(response.get("choices"), list):
        return messages, [(choice["message"], choice.get("finish_reason")) for choice in response["choices"]]
    return messages, [] if after is None else [({"role": "assistant", "content": _text(after)}, None)]


def tools(said: Attributes) -> list[Record]:
    """Tools in OpenAI's form, whatever they were written as."""
    found = parsed(said.get("gen_ai.tool.definitions"))
    listed: list[Any] = found if isinstance(found, list) else _in_order(nested(said, "llm.request.functions"))
    if not listed:
        listed = [parsed(one.get("tool", {}).get("json_schema")) for one in _in_order(nested(said, "llm.tools"))]
    shaped = []
    for tool in listed:
        if isinstance(tool, dict):
            function = {key: held for key, held in tool.get("function", tool).items() if key != "type"}
            function["parameters"] = parsed(function.get("parameters"))
            shaped.append({"type": "function", "function": function})
    return shaped


def nested(said: Attributes, prefix: str) -> Any:
    """What dotted keys under `prefix` spell: `a.0.b` = 1 is {"0": {"b": 1}}."""
    whole: dict[str, Any] = {}
    for key, held in said.items():
        if not key.startswith(f"{prefix}."):
            continue
        *path, last = key[len(prefix) + 1 :].split(".")
        inner = whole
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise Rejected(f"{key} is below a value")
        inner[last] = held
    return whole


def _in_order(numbered: Any) -> list[Any]:
    """The values of {"0": …, "1": …}, or a list as it is."""
    if isinstance(numbered, list):
        return numbered
    return [numbered[key] for key in sorted(numbered or {}, key=int)]
