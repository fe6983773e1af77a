"""What went into a call of a model and what came out of it, as tracing tools keep it, in OpenAI's form.

Tools store whatever the traced library was given and returned, as JSON or as text of it. Understood are

| given                                              | returned                                                   |
|----------------------------------------------------|------------------------------------------------------------|
| a chat request, `{messages, tools, temperature…}`  | a chat completion, its streamed chunks                     |
| a request of the Responses API, `{input}`          | its response, `{output: [items]}`                          |
| a completion's `{prompt}`                          | a completion, `{choices: [{text}]}`                        |
| a list of messages, one message                    | a message, a list that ends with one                       |
| text                                               | text                                                       |
| LangChain's messages, `[[…]]`, or prompts          | `{generations: [[…]]}`                                     |

Messages may be OpenAI's, LangChain's (`type: human`, calls with `args`), Anthropic's (blocks `tool_use` and
`tool_result`, `system` beside them) or OpenTelemetry's (`parts`). Of a request only what shapes the answer is kept:
calls also carry headers, and those carry keys.

Sources: OpenAI API reference (chat, completions, responses); Anthropic Messages API; langchain-core `messages`.
"""

import json
from typing import Any

from infra.database.jsontext import Rejected, loads
from infra.database.messages import assembled, kind
from infra.telemetry.conventions import of_parts

Record = dict[str, Any]
Message = dict[str, Any]

OPTIONS = (
    "model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "n", "frequency_penalty",
    "presence_penalty", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
)  # fmt: skip
FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal")
LANGCHAIN = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "system": "system", "tool": "tool"}
FINISHED = {"tool_call": "tool_calls", "tool_use": "tool_calls", "end_turn": "stop", "max_tokens": "length"}


def structure(said: Any) -> Any:
    """What a text of a JSON object or list holds; anything else stays."""
    return unpacked(said) if isinstance(said, str) and said.lstrip()[:1] in ("{", "[") else said


def unpacked(text: str) -> Any:
    """What a text says as JSON, or the text where it is none.

    Raises:
        Rejected: It is JSON with NaN or Infinity, which no database stores.
    """
    try:
        return loads(text.encode("utf-8", "surrogatepass"))
    except Rejected:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        raise


def request(given: Any) -> Record:
    """What was given to a model as `{messages, …}`.

    Raises:
        Rejected: It is none of what is understood.
    """
    given = structure(given)
    if isinstance(given, dict) and not _is_message(given):
        found = next((given[key] for key in ("messages", "input", "prompt") if given.get(key)), None)
        told = given.get("system") or given.get("instructions")
        if found is None:
            raise Rejected(f"the input is an object of {_names(given)}, neither messages nor text")
        said = [{"role": "system", "content": _content(told)[0]}] if told else []
        return {**options(given), "messages": said + messages(found)}
    return {"messages": messages(given)}


def options(given: Any) -> Record:
    """Of the parameters of a call those that shape the answer."""
    return {key: given[key] for key in OPTIONS if given.get(key) is not None} if isinstance(given, dict) else {}


def response(said: Any, structured: bool = True) -> Record:
    """What a model returned as `{choices, usage?, model?}`.

    Args:
        structured: An object of no known form is what the model said, as JSON.

    Raises:
        Rejected: There is none, or it is none of what is understood.
    """
    whole = structure(said)
    if whole is None or whole == "":
        raise Rejected("there is no output")
    if isinstance(whole, dict) and isinstance(whole.get("choices"), list):
        kept = {key: whole[key] for key in ("usage", "model", "created") if whole.get(key) is not None}
        return {**kept, "choices": [_choice(one) for one in whole["choices"]]}
    if isinstance(whole, list) and whole and all(isinstance(one, dict) and "choices" in one for one in whole):
        return assembled(whole)
    answer = _answer(whole)
    if answer is not None:
        reason = finished(whole.get("stop_reason")) if isinstance(whole, dict) else None
        return {"choices": [{"index": 0, "message": answer, "finish_reason": reason}]}
    if not isinstance(said, str) and not structured:
        raise Rejected(f"the output is {kind(said)}, neither a message nor text")
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def answer(said: Any) -> str | Message:
    """A right answer as a message where it is one in some form, else as text."""
    whole = structure(said)
    if isinstance(whole, dict) and isinstance(whole.get("choices"), list) and whole["choices"]:
        message: Message = _choice(whole["choices"][0])["message"]
        return message
    found = _answer(whole)
    return found if found is not None else said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def finished(reason: Any) -> Any:
    return FINISHED.get(reason, reason) if isinstance(reason, str) else None


def _choice(one: Any) -> Record:
    if not isinstance(one, dict):
        raise Rejected(f"a choice is {kind(one)}, not an object")
    said = one["message"] if isinstance(one.get("message"), dict) else {"content": one.get("text")}
    (message,) = _message({"role": "assistant", **said})
    return {"index": one.get("index", 0), "message": message, "finish_reason": finished(one.get("finish_reason"))}


def _answer(whole: Any) -> Message | None:
    """The assistant message in an output of another form than a completion; None where there is none."""
    if isinstance(whole, dict) and isinstance(whole.get("generations"), list):
        firsts = [one for group in whole["generations"] for one in (group if isinstance(group, list) else [group])]
        first = firsts[0] if firsts and isinstance(firsts[0], dict) else {}
        whole = first.get("message") or {"role": "assistant", "content": first.get("text")}
    if isinstance(whole, dict) and isinstance(whole.get("output"), list):
        whole = whole["output"]
    elif isinstance(whole, dict) and isinstance(whole.get("messages"), list):
        whole = whole["messages"]
    if isinstance(whole, dict) and _is_message({"role": "assistant", **whole} if _bare(whole) else whole):
        whole = [{"role": "assistant", **whole} if _bare(whole) else whole]
    if isinstance(whole, list) and whole and all(isinstance(one, dict) and _is_message(one) for one in whole):
        said = messages(whole)
        if said and said[-1]["role"] == "assistant":
            return said[-1]
    return None


def _bare(said: Record) -> bool:
    """Whether it is an answer without its role."""
    return "role" not in said and bool(said) and {"content"} <= set(said) <= {*FIELDS, "additional_kwargs"}


def _is_message(said: Record) -> bool:
    items = ("message", "function_call", "function_call_output", "reasoning")
    return "role" in said or "lc" in said or said.get("type") in (*items, *LANGCHAIN)


def messages(said: Any) -> list[Message]:
    """Messages in OpenAI's form, from a list of them in any form, from one, or from text.

    Raises:
        Rejected: It is none of these.
    """
    said = structure(said)
    if isinstance(said, dict):
        said = [said]
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], list | str):
        said = said[0]  # LangChain's batch of one
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) and _is_message(one) for one in said):
        raise Rejected(f"the messages are {kind(said)}, neither a list of messages nor text")
    found: list[Message] = []
    for one in said:
        for message in _message(one):
            if found and one.get("type") == "function_call" and found[-1]["role"] == "assistant":
                found[-1]["tool_calls"] = [*found[-1].get("tool_calls", []), *message["tool_calls"]]
            else:
                found.append(message)
    return found


def _message(said: Record) -> list[Message]:
    """One message; where results of tools are blocks of it, one for each."""
    if said.get("type") == "reasoning" and "role" not in said:
        return []
    if said.get("type") == "function_call":
        call = {"id": said.get("call_id"), "name": said.get("name"), "arguments": said.get("arguments") or "{}"}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]
    if said.get("type") == "function_call_output":
        return [{"role": "tool", "tool_call_id": said.get("call_id"), "content": _text(said.get("output"))}]
    if "parts" in said:
        return of_parts(said)
    if "lc" in said and isinstance(said.get("kwargs"), dict):
        name = str((said.get("id") or [""])[-1]).removesuffix("Chunk").removesuffix("Message").lower()
        said = {"role": name, **said["kwargs"]}
    role = said.get("role") or LANGCHAIN.get(str(said.get("type")), "")
    content, calls, results = _content(said.get("content"))
    more = said.get("additional_kwargs") if isinstance(said.get("additional_kwargs"), dict) else {}
    calls += [_call(call) for call in said.get("tool_calls") or (more or {}).get("tool_calls") or []]
    kept = {key: said[key] for key in FIELDS if said.get(key) and key not in ("role", "content", "tool_calls")}
    if results and content in (None, "", []) and not calls:
        return results
    return [*results, {"role": role, "content": content, **kept, **({"tool_calls": calls} if calls else {})}]


def _call(call: Any) -> Record:
    """A call of a tool; LangChain's arguments are `args`."""
    if isinstance(call, dict) and "args" in call and "function" not in call:
        return {"id": call.get("id"), "name": call.get("name"), "arguments": call["args"]}
    return call  # type: ignore[no-any-return]


def _content(said: Any) -> tuple[Any, list[Record], list[Message]]:
    """The content of a message without its blocks of calls and results, those calls, and those results."""
    if said is None or isinstance(said, str):
        return said, [], []
    if not isinstance(said, list):
        raise Rejected(f"the content of a message is {kind(said)}, not text or parts")
    parts: list[Record] = []
    calls: list[Record] = []
    results: list[Message] = []
    for part in said:
        sort = part.get("type") if isinstance(part, dict) else "text"
        if isinstance(part, str) or sort in ("text", "input_text", "output_text"):
            parts.append({"type": "text", "text": part if isinstance(part, str) else part.get("text") or ""})
        elif sort == "tool_use":
            calls.append({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input") or {}})
        elif sort == "tool_result":
            inner = _content(part.get("content"))[0] if isinstance(part.get("content"), list) else part.get("content")
            results.append({"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": _text(inner)})
        elif sort not in ("thinking", "redacted_thinking", "reasoning"):
            parts.append(part)
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"], calls, results
    return parts or None, calls, results


def _text(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _names(given: Record) -> str:
    names = ", ".join(repr(str(key)[:40]) for key in list(given)[:5])
    return names + (", …" if len(given) > 5 else "") if names else "nothing"
