"""A row of any table → the records in it: a call, what someone thought of it, or both.

A row is an object whose fields have our names; which columns they come from is the spec's matter. JSON may be text or
parsed. The fields of a call:

| field                                                       | holds                                                 |
|-------------------------------------------------------------|-------------------------------------------------------|
| request                                                     | the request as OpenAI's API takes it                  |
| messages, or prompt                                         | in its place: a list of messages, or text of the user |
| system, tools                                               | the system prompt (text) and the tools (JSON) of both |
| response                                                    | the response as OpenAI's API gives it, or its chunks  |
| answer                                                      | in its place: text, or a message                      |
| id, timestamp, workload_id, client_id, conversation_id, ... | as in a line of a log                                 |

and of feedback, which is about `record_id`, or about the call of the same row:

| field                     | holds                                                                 |
|---------------------------|-----------------------------------------------------------------------|
| kind, value               | as in a line of a log, where `value` may be text                      |
| thumb, rating, correction | in their place: a column for each, in which NULL says nothing         |
| metric, scale             | of a rating: its name, and `[worst, best]` where that is not `[1, 5]` |

Such a row is what quarantine keeps, and so are the records made of it, which are rows as well.
"""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from infra.database.jsontext import Rejected, loads
from infra.database.messages import ROLES, assembled, kind
from infra.database.records import digest, name, thumb

Field = Literal[
    "id", "timestamp", "workload_id", "client_id", "conversation_id", "latency_ms", "model", "prompt_tokens",
    "completion_tokens", "request", "messages", "prompt", "system", "tools", "response", "answer",
    "record_id", "kind", "value", "thumb", "rating", "correction", "metric", "scale",
]  # fmt: skip
FIELDS: tuple[str, ...] = get_args(Field)
ASKED, ANSWERED = ("request", "messages", "prompt"), ("response", "answer")
OPINIONS = ("thumb", "rating", "correction")
NAMES = ("id", "record_id", "workload_id", "client_id", "conversation_id", "model")
ENVELOPE = ("id", "timestamp", "workload_id", "client_id", "conversation_id", "latency_ms")


def lacking(there: frozenset[str]) -> str:
    """What rows with these fields lack to be records; nothing where they are."""
    if there.intersection(ASKED) and there.intersection(ANSWERED):
        return ""
    if "record_id" in there and (there.intersection(OPINIONS) or {"kind", "value"} <= there):
        return ""
    return (
        f"a call needs {' or '.join(ASKED)}, and {' or '.join(ANSWERED)}; "
        f"feedback needs record_id, and {', '.join(OPINIONS)} or kind and value"
    )


def plain(value: Any, field: str = "") -> Any:
    """What a driver gives for a value, as JSON.

    Times become ISO 8601, intervals milliseconds, bytes text (what is none: hexadecimal), whole numbers that name
    something have no fraction.
    """
    if isinstance(value, memoryview | bytearray):
        value = bytes(value)
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, float) and field in NAMES and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return value.hex()
        return value.hex() if "\x00" in text else text
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value / timedelta(milliseconds=1)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value)  # a UUID, an enum


def records(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The call in a row, then the feedback in it, as lines of a log would say them.

    Raises:
        Rejected: A field does not hold what it should.
    """
    said = {field: value for field, value in row.items() if value is not None}
    if not said.keys() & {*ASKED, *ANSWERED}:
        yield from _feedback(said, said.get("record_id"), said.get("id"))
        return
    call = _call(said)
    about = said.get("record_id")
    opinionated = bool(said.keys() & {*OPINIONS, "kind"})
    if about is None and opinionated:
        response = call["response"] if isinstance(call["response"], dict) else {}
        about = call["id"] = name(call, "id") or name(response, "id") or digest(call)
    yield call
    if opinionated:
        yield from _feedback(said, about, None)


def _feedback(said: Mapping[str, Any], about: Any, own: Any) -> Iterator[dict[str, Any]]:
    """Each thing that someone thought of `about`; `own` is the id of the row, if it is the feedback's and no call's."""
    if about is None:
        raise Rejected("the row has neither a call (request, response) nor feedback (record_id) in it")
    found = [(field, said[field], f"{own}:{field}") for field in OPINIONS if field in said]
    if "kind" in said and "value" in said:
        found.append((said["kind"], said["value"], own))
    if not found:
        raise Rejected("feedback has no value")
    base = {"record_id": about, **{field: said[field] for field in ("timestamp", "metric") if field in said}}
    for sort, value, named in found:
        scale = {"scale": parsed(said["scale"], "scale")} if sort == "rating" and "scale" in said else {}
        known = {"id": named} if own is not None else {}
        yield {**known, **base, **scale, "kind": sort, "value": _value(sort, value)}


def _call(said: Mapping[str, Any]) -> dict[str, Any]:
    call = {field: said[field] for field in ENVELOPE if field in said}
    request, response = _request(said), _response(said)
    if isinstance(response, dict):
        counted = {field: said[field] for field in ("prompt_tokens", "completion_tokens") if field in said}
        usage = {"usage": {**counted, **(response.get("usage") or {})}} if counted else {}
        model = {"model": name(said, "model")} if "model" in said and not response.get("model") else {}
        response = {**response, **usage, **model}
    return {**call, "request": request, "response": response}


def _request(said: Mapping[str, Any]) -> Any:
    if "request" in said:
        return parsed(said["request"], "request")
    if "messages" in said:
        messages = parsed(said["messages"], "messages")
        if not isinstance(messages, list):
            raise Rejected(f"messages is {kind(messages)}, not a list; a column of plain text is a `prompt`")
    elif "prompt" in said:
        if not isinstance(said["prompt"], str):
            raise Rejected(f"prompt is {kind(said['prompt'])}, not text; a column of JSON is `messages` or `request`")
        messages = [{"role": "user", "content": said["prompt"]}]
    else:
        return None
    system = [{"role": "system", "content": said["system"]}] if said.get("system") else []
    tools = parsed(said["tools"], "tools") if said.get("tools") else None
    return {"messages": [*system, *messages], **({"tools": tools} if tools else {})}


def _response(said: Mapping[str, Any]) -> Any:
    if "response" in said:
        response = parsed(said["response"], "response")
        return assembled(response) if isinstance(response, list) else response
    if "answer" not in said:
        return None
    answer = spoken(said["answer"])
    if isinstance(answer, dict) and "choices" in answer:
        return answer
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    return {"choices": [{"index": 0, "message": message}]}


def spoken(said: Any) -> Any:
    """An answer: a message or a response where it is one, else text. JSON that a model answered with stays text."""
    found = said
    if isinstance(said, str) and said.lstrip().startswith("{"):
        try:
            found = loads(said.encode())
        except (Rejected, UnicodeEncodeError):
            return said
    if isinstance(found, dict):
        known = isinstance(found.get("role"), str) and ROLES.get(found["role"]) == "assistant"
        if known or isinstance(found.get("choices"), list) or isinstance(found.get("tool_calls"), list):
            return found
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _value(sort: Any, value: Any) -> Any:
    if sort == "thumb":
        if str(value) == "0":
            raise Rejected("a thumb is 0, which may mean down or none; say it in the query: CASE ... THEN -1 END")
        return thumb(value)
    if sort == "rating" and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        return number if math.isfinite(number) else value
    if sort == "correction":
        return spoken(value)
    return parsed(value, "a preference") if sort == "preference" else value


def parsed(value: Any, what: str) -> Any:
    """JSON that may be text.

    Raises:
        Rejected: It is text and no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return loads(value.encode())
    except (Rejected, UnicodeEncodeError) as problem:
        raise Rejected(f"{what} is text that is {problem}; columns of plain text are `prompt` and `answer`") from None
