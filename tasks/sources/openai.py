"""What OpenAI's platform gives back as JSON lines, each as the call that it is.

| line                                                          | its request                                         |
|---------------------------------------------------------------|-----------------------------------------------------|
| `{"custom_id", "response": {"status_code", "body"}, "error"}` | the line of the batch's input with that custom_id   |
| a stored completion, alone or on a page of a list             | its `messages`, or lines with them                  |
| `{"messages": [..., assistant]}`, as one trains on            | all messages but the last, which is the answer      |

After "API Reference", sections Batch (the request input object, the request output object) and Chat Completions (list
and get stored completions, get messages), and "Supervised fine-tuning" of platform.openai.com/docs. Mistral and others
write batches alike, without `method` and `url`. Requests on lines of their own (`tasks/sources/apart.py`) are no
records. An answer keeps what it has, `logprobs` as well; a request that failed or expired is a call with an error.
The record's id is the completion's (`chatcmpl-…`), which feedback has to name: a custom_id is only unique in its batch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.database.jsontext import Rejected
from infra.database.messages import ROLES, kind
from tasks.sources.apart import Requests, is_apart

# Of a request; what a stored completion repeats of it, and what a training line has beside its messages.
PARAMETERS = (
    "model", "tools", "tool_choice", "parallel_tool_calls", "functions", "response_format", "temperature", "top_p",
    "max_tokens", "max_completion_tokens", "seed", "presence_penalty", "frequency_penalty",
)  # fmt: skip


def is_page(record: Mapping[str, Any]) -> bool:
    """Whether it is a page of stored completions."""
    return record.get("object") == "list" and isinstance(record.get("data"), list) and not is_apart(record)


def call(record: dict[str, Any], requests: Requests, file: Path | None) -> dict[str, Any] | None:
    """The record that a line of `file` says, with `request` and `response`; what is none of these stays as it is.

    None where the line is the request of an answer that lies elsewhere.

    Raises:
        Rejected: It has no request, or no answer.
    """
    if "request" in record or "record_id" in record:
        return record
    if is_apart(record):
        return None
    if "custom_id" in record and ("response" in record or "error" in record):
        return _of_batch(record, requests, file)
    if "choices" in record:
        return _stored(record, requests, file)
    return _training(record) if "messages" in record and "response" not in record else record


def _of_batch(line: Mapping[str, Any], requests: Requests, file: Path | None) -> dict[str, Any]:
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        body = response.get("body")
        failed = response.get("status_code", 200) != 200
        if failed and not (isinstance(body, dict) and body.get("error")):
            body = {"error": {key: response[key] for key in ("status_code", "message", "body") if key in response}}
    elif error:
        body = {"error": error}
    else:
        raise Rejected("a line of a batch's output has neither a response nor an error")
    request = requests.of_batch(str(line["custom_id"]), file)
    named = {"custom_id": line["custom_id"], **_named(request.get("metadata"))}
    return {**named, "request": request, "response": body}


def _stored(completion: dict[str, Any], requests: Requests, file: Path | None) -> dict[str, Any]:
    said = completion.get("messages")
    if said is None:
        if not isinstance(completion.get("id"), str):
            raise Rejected("a completion has neither its messages nor an id to find them by")
        said = requests.of_completion(completion["id"], file)
    if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
        raise Rejected(f"messages is {kind(said)}, not a list of objects")
    messages = [_message(message) for message in said]
    response = {field: value for field, value in completion.items() if field != "messages"}
    if messages and messages[-1].get("role") == "assistant" and _says(messages[-1], response):
        messages.pop()
    asked = {field: completion[field] for field in PARAMETERS if completion.get(field) is not None}
    return {**_named(completion.get("metadata")), "request": {**asked, "messages": messages}, "response": response}


def _message(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored message as it was sent: its parts are under `content_parts`, and what it has not is null."""
    sent = {key: value for key, value in stored.items() if value is not None and key not in ("id", "content_parts")}
    content = stored.get("content")
    return {**sent, "content": stored.get("content_parts") if content is None else content}


def _says(message: Mapping[str, Any], response: Mapping[str, Any]) -> bool:
    """Whether a message is the answer itself."""
    first = response["choices"][0] if isinstance(response.get("choices"), list) and response["choices"] else None
    answer = first.get("message") if isinstance(first, dict) else None
    return isinstance(answer, dict) and answer.get("content") == message.get("content")


def _named(metadata: Any) -> dict[str, Any]:
    """What the metadata of a request say about the record."""
    if not isinstance(metadata, dict):
        return {}
    workload = metadata.get("workload_id") or metadata.get("workload")
    return {"metadata": metadata, **({"workload_id": workload} if workload else {})}


def _training(line: Mapping[str, Any]) -> dict[str, Any]:
    messages = line["messages"]
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise Rejected(f"messages is {kind(messages)}, not a list of messages")
    *asked, answer = messages
    if ROLES.get(str(answer.get("role"))) != "assistant":
        raise Rejected(f"the last message is of role {answer.get('role')!r}; the answer, an assistant's, is missing")
    if answer.get("weight") == 0:
        raise Rejected("the answer has weight 0: whoever wrote the line does not want it to be learned")
    request = {field: line[field] for field in PARAMETERS if line.get(field) is not None}
    rest = {field: value for field, value in line.items() if field not in (*PARAMETERS, "messages")}
    said = {field: value for field, value in answer.items() if field != "weight"}
    response = {"choices": [{"index": 0, "message": said}]}
    return {**_named(line.get("metadata")), **rest, "request": {**request, "messages": asked}, "response": response}
