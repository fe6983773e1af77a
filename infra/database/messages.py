"""OpenAI chat messages as they come, and the one shape in which they are kept.

Tool-call arguments arrive as a JSON string or as an object, calls flat or nested, answers whole or as streamed
chunks, roles under other names. Kept is what the OpenAI API itself says: `arguments` a JSON string, calls nested.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from infra.database.jsontext import Rejected
from infra.prefix import text_of

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "function", "human": "user", "ai": "assistant",
}  # fmt: skip
CUT_OFF = "cut_off"
UNFINISHED = ("length", "content_filter", "error", CUT_OFF)  # finish_reasons of answers that are not whole


def normalized_request(request: Any) -> dict[str, Any]:
    """A request with its messages in the one shape; what else it has stays as it is.

    Raises:
        Rejected: There are no messages, or one is none.
    """
    if not isinstance(request, dict):
        raise Rejected(f"request is {kind(request)}, not an object")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Rejected("request has no messages")
    tools = request.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Rejected(f"request.tools is {kind(tools)}, not a list of objects")
    return {**request, "messages": [normalized_message(m, f"request.messages[{n}]") for n, m in enumerate(messages)]}


def normalized_message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Rejected(f"{place} is {kind(message)}, not an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Rejected(f"{place} has role {str(role)[:40]!r}, known are {', '.join(ROLES)}")
    content = message.get("content")
    if not (content is None or isinstance(content, str | list)):
        raise Rejected(f"{place} has {kind(content)} for content, not text, parts or null")
    shaped = message if ROLES[role] == role else {**message, "role": ROLES[role]}
    return (
        {**shaped, "tool_calls": tool_calls(message["tool_calls"], f"{place}.tool_calls")}
        if message.get("tool_calls")
        else shaped
    )


def tool_calls(calls: Any, place: str = "tool_calls") -> list[dict[str, Any]]:
    """Tool calls, nested under `function` or flat, with their arguments as the JSON string they were or now are.

    A string that is no JSON stays: that is what the model said.

    Raises:
        Rejected: It is no list of calls, or one has no name.
    """
    if not isinstance(calls, list):
        raise Rejected(f"{place} is {kind(calls)}, not a list")
    shaped = []
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejected(f"{place}[{number}] has no function name")
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        call_id = call["id"] if isinstance(call.get("id"), str) else f"call_{number}"
        shaped.append(
            {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return shaped


def assistant_message(said: Any) -> dict[str, Any]:
    """An answer in the one shape, from text or from a message whose role may be missing.

    Raises:
        Rejected: It is neither, or says nothing.
    """
    if isinstance(said, str):
        return {"role": "assistant", "content": said}
    if not isinstance(said, dict):
        raise Rejected(f"an answer is {kind(said)}, not text or a message")
    calls = tool_calls(said["tool_calls"]) if said.get("tool_calls") else []
    content = text_of(said.get("content"))
    if content is None and not calls:
        raise Rejected("an answer has neither text nor tool calls")
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


def normalized_response(response: Any) -> dict[str, Any]:
    """A response with its messages in the one shape: whole, as streamed chunks, or an error instead of an answer.

    Raises:
        Rejected: It has neither choices nor an error.
    """
    if isinstance(response, list):
        try:
            response = assembled(response)
        except Rejected as problem:
            raise Rejected(f"response: {problem}") from problem
    if not isinstance(response, dict):
        raise Rejected(
            f"response is {kind(response)}, not an object" if response is not None else "there is no response"
        )
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        if response.get("error"):
            return response
        raise Rejected("response has neither choices nor an error")
    shaped = []
    for number, choice in enumerate(choices):
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise Rejected(f"response.choices[{number}] has no message")
        place = f"response.choices[{number}].message"
        shaped.append({**choice, "message": normalized_message({"role": "assistant", **message}, place)})
    return {**response, "choices": shaped}


def answer_of(response: Mapping[str, Any]) -> dict[str, Any] | None:
    """The assistant message of a stored response, or None where there is none to imitate.

    None stands for an error, an empty answer, one cut off (UNFINISHED), and a call whose arguments are no JSON object.
    An answer that was logged whole needs no finish_reason.
    """
    choice = (response.get("choices") or [{}])[0]
    if choice.get("finish_reason") in UNFINISHED:
        return None
    try:
        message = assistant_message(choice.get("message"))
        calls = message.get("tool_calls", [])
        whole = all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
    except (ValueError, RecursionError):
        return None
    return message if whole and (calls or message["content"].strip()) else None


def assembled(chunks: Iterable[Any]) -> dict[str, Any]:
    """Streamed chunks as the response they are parts of; choices and tool calls are told apart by their `index`.

    A choice that no chunk finished gets the finish_reason `cut_off`: in a stream, a half answer looks like a whole one.
    A chunk may be an error, before which there may be choices.

    Raises:
        Rejected: One is no chunk.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices", []), list):
            raise Rejected(f"a streamed chunk is {kind(chunk)}, not an object with choices")
        whole |= {k: v for k, v in chunk.items() if k not in ("choices", "object") and v is not None}
        for part in chunk.get("choices", []):
            delta = part.get("delta") if isinstance(part, dict) else None
            if not isinstance(delta, dict):
                raise Rejected("a streamed chunk has a choice without delta")
            index = part.get("index", 0)
            if not isinstance(index, int):
                raise Rejected(f"a streamed choice has {kind(index)} for its index")
            choice = choices.setdefault(index, {"index": index, "message": {"role": "assistant", "content": None}})
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
            if isinstance(said := part.get("logprobs"), dict):
                kept = choice.setdefault("logprobs", {})
                for name, tokens in said.items():
                    if isinstance(tokens, list):
                        kept[name] = [*(kept.get(name) or []), *tokens]
            _extend(choice["message"], delta)
    if not choices and whole.get("error"):
        return whole
    if not choices:
        raise Rejected("a streamed response has no chunk with choices")
    for choice in choices.values():
        choice.setdefault("finish_reason", CUT_OFF)
    return {**whole, "object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}


def _extend(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, said in delta.items():  # content, refusal, reasoning_content
        if isinstance(said, str) and name != "role":
            message[name] = (message.get(name) or "") + said
    parts = delta.get("tool_calls") or []
    if not isinstance(parts, list):
        raise Rejected(f"a streamed chunk's tool_calls is {kind(parts)}, not a list")
    for number, part in enumerate(parts):
        calls = message.setdefault("tool_calls", [])
        index = part.get("index", number) if isinstance(part, dict) else None
        if not isinstance(index, int) or not 0 <= index <= len(calls):
            raise Rejected("a streamed tool call has no index that follows the last")
        if index == len(calls):
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        function = part.get("function") or {}
        if not isinstance(function, dict) or not all(isinstance(v, str | None) for v in function.values()):
            raise Rejected("a streamed tool call has a function that is no name and arguments in text")
        calls[index]["id"] = part.get("id") or calls[index]["id"]
        calls[index]["function"]["name"] += function.get("name") or ""
        calls[index]["function"]["arguments"] += function.get("arguments") or ""


def kind(value: Any) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    names = {bool: "a truth value", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
