"""MLflow's traces and assessments as records of traffic and feedback.

A trace is a tree of spans. Those of type CHAT_MODEL or LLM are calls of a model, each an interaction; of two such spans
one below the other the inner one is the call. A trace without any is a traced plain function: its root is the
interaction if it was given messages or one text and returned a message or text, and is refused otherwise. A root that
is of another kind (an embedding, a retrieval), a trace that a scorer made, and one that is still going on are no rows.
Contents are read from the spans: the previews beside them are cut at 1,000 characters.

| of a record  | is                                                                                              |
|--------------|-------------------------------------------------------------------------------------------------|
| id           | `<trace id>-<span id in hex>`                                                                   |
| conversation | `mlflow.trace.session`; else the trace, if it has several calls                                 |
| client       | `mlflow.trace.user`                                                                             |
| workload     | `flywheel.workload` of the span, the tags or the metadata; what the reader is told; the         |
|              | experiment's name                                                                               |

An assessment is about the call of its span, or the only call below it; one of a whole trace is about its only call, or
else, as one of a session, about the conversation. What it says is read by the rule of `opinions.py`: only HUMAN is a
person. An expectation is a correction if its name says that it is the right answer (`expected_response`,
`ground_truth`…), else a label. Assessments that were overridden (`valid` is false), that failed or say NaN, or that
point to an issue are no rows; one that was changed in place is another record than before.

Source: MLflow 3.17 `mlflow.entities`, `mlflow.tracing.constant`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from infra.database.jsontext import Rejected
from infra.database.messages import kind
from infra.database.records import Parsed, moment, parse
from infra.telemetry import payloads
from infra.telemetry.opinions import as_text, is_expected, opinion
from infra.telemetry.otlp import nanoseconds

SOURCE: Literal["mlflow"] = "mlflow"
Record = dict[str, Any]

MODELS = ("CHAT_MODEL", "LLM")
NO_CALLS = ("EMBEDDING", "RETRIEVER", "RERANKER", "TOOL", "PARSER", "MEMORY", "GUARDRAIL", "EVALUATOR")
SESSION, USER = "mlflow.trace.session", "mlflow.trace.user"
SCORER = "mlflow.trace.sourceScorer"
WORKLOAD = "flywheel.workload"
USAGE = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}


def rows(document: Any, at: datetime, workload: str = "") -> Iterator[Parsed]:
    """The records of a trace as JSON, `{info, data: {spans}}`; `at` is the time of those that have none.

    Each comes with a trace that holds it alone and says the same.

    Raises:
        Rejected: It is no trace.
    """
    if not isinstance(document, dict) or not all(isinstance(document.get(key), dict) for key in ("info", "data")):
        raise Rejected(f"a trace is {kind(document)}, not an object of info and data")
    info, spans = document["info"], document["data"].get("spans") or []
    if info.get("state") == "IN_PROGRESS" or SCORER in (info.get("tags") or {}):
        return
    try:
        found = calls(spans)
        own = _info(info, found)
        for span in found:
            yield _parsed(_interaction, {"info": own, "data": {"spans": [span]}}, at, workload)
        for assessment in info.get("assessments") or ():
            if says_something(assessment):
                about = _about(assessment, spans, found)
                alone = {key: held for key, held in assessment.items() if key != "span_id"}
                alone |= {"span_id": about} if about else {}
                yield _parsed(_feedback, {"info": {**own, "assessments": [alone]}, "data": {"spans": []}}, at, workload)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise Rejected(f"the trace is broken: {problem!r}") from problem


def _parsed(make: Any, document: Record, at: datetime, workload: str) -> Parsed:
    raw = json.dumps(document).encode()
    try:
        return Parsed(raw, parse(make(document, workload), source=SOURCE, at=at, workload=workload))
    except Rejected as problem:
        return Parsed(raw, None, str(problem))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        return Parsed(raw, None, f"the record is broken: {problem!r}")


def calls(spans: Sequence[Record]) -> list[Record]:
    """The spans that are calls of a model, or, in a trace without any, its root if that may be one."""
    models = [span for span in spans if attribute(span, "mlflow.spanType") in MODELS]
    above = {ancestor for span in models for ancestor in _above(span, spans)}
    if models:
        return [span for span in models if span["span_id"] not in above]
    roots = [span for span in spans if not span.get("parent_span_id")]
    return [span for span in roots[:1] if attribute(span, "mlflow.spanType") not in NO_CALLS]


def _above(span: Record, spans: Sequence[Record]) -> Iterator[str]:
    """Ids of a span's ancestors."""
    parents = {one["span_id"]: one.get("parent_span_id") for one in spans}
    parent = parents.pop(span["span_id"])
    while parent:
        yield parent
        parent = parents.pop(parent, None)


def attribute(span: Mapping[str, Any], key: str) -> Any:
    """What an attribute says: each is kept as the JSON of it."""
    held = (span.get("attributes") or {}).get(key)
    return payloads.unpacked(held) if isinstance(held, str) else held


def hexadecimal(span_id: str) -> str:
    """A span's id as assessments name it."""
    return base64.b64decode(span_id).hex()


def _info(info: Record, found: Sequence[Record]) -> Record:
    """What a record needs to know of its trace, the conversation said outright."""
    metadata, tags = info.get("trace_metadata") or {}, info.get("tags") or {}
    session = metadata.get(SESSION) or (info["trace_id"] if len(found) != 1 else None)
    said = {SESSION: session, USER: metadata.get(USER), WORKLOAD: tags.get(WORKLOAD) or metadata.get(WORKLOAD)}
    kept: Record = {key: info[key] for key in ("trace_id", "trace_location", "request_time", "state") if key in info}
    return {**kept, "trace_metadata": {key: held for key, held in said.items() if held}}


def _interaction(document: Record, workload: str) -> Record:
    info, (span,) = document["info"], document["data"]["spans"]
    metadata, plain = info["trace_metadata"], attribute(span, "mlflow.spanType") not in MODELS
    request = _request(span, plain)
    response = _response(span, plain)
    usage = attribute(span, "mlflow.chat.tokenUsage") or {}
    if usage:
        response["usage"] = {ours: usage.get(theirs) for ours, theirs in USAGE.items()}
    experiment = (info.get("trace_location") or {}).get("mlflow_experiment") or {}
    start, end = span["start_time_unix_nano"], span.get("end_time_unix_nano")
    return {
        "id": f"{info['trace_id']}-{hexadecimal(span['span_id'])}", "timestamp": nanoseconds(start).isoformat(),
        "workload_id": attribute(span, WORKLOAD) or metadata.get(WORKLOAD) or workload or experiment.get("name"),
        "client_id": metadata.get(USER), "conversation_id": metadata.get(SESSION),
        "latency_ms": (int(end) - int(start)) / 1e6 if end else None, "request": request, "response": response,
    }  # fmt: skip


def _request(span: Record, plain: bool) -> Record:
    given = attribute(span, "mlflow.spanInputs")
    if given is None:
        raise Rejected(f"span {span.get('name')!r} has no inputs; what they were is not in the trace")
    if plain and isinstance(given, dict) and "messages" not in given:
        if len(given) != 1 or not isinstance(next(iter(given.values())), str | list):
            raise Rejected(
                f"no span of this trace is a call of a model (type {' or '.join(MODELS)}), and its root was given "
                f"{', '.join(map(repr, list(given)[:5])) or 'nothing'}, neither messages nor one text"
            )
        given = next(iter(given.values()))
    request = payloads.request(given)
    request |= payloads.options(attribute(span, "invocation_params"))
    if model := attribute(span, "mlflow.llm.model"):
        request.setdefault("model", model)
    if tools := attribute(span, "mlflow.chat.tools"):
        request["tools"] = tools
    return request


def _response(span: Record, plain: bool) -> Record:
    status = span.get("status") or {}
    if status.get("code") in ("STATUS_CODE_ERROR", "ERROR"):
        thrown = next((event.get("attributes") or {} for event in span.get("events") or ()), {})
        message = status.get("message") or thrown.get("exception.message") or "error"
        return {"error": {"message": message, "type": thrown.get("exception.type")}}
    response = payloads.response(attribute(span, "mlflow.spanOutputs"), structured=not plain)
    if model := attribute(span, "mlflow.llm.model"):
        response["model"] = model
    return response


def says_something(assessment: Record) -> bool:
    """Whether it stands and judges, in place of pointing to an issue or having failed."""
    if assessment.get("valid") is False or not ("feedback" in assessment or "expectation" in assessment):
        return False
    return _said(assessment) is not None


def _said(assessment: Record) -> Any:
    held = assessment.get("feedback") or assessment.get("expectation") or {}
    if "serialized_value" in held:
        return payloads.unpacked(held["serialized_value"]["value"])
    return held.get("value")


def _about(assessment: Record, spans: Sequence[Record], found: Sequence[Record]) -> str | None:
    """The span, in hex, of the call that an assessment is about; None for the conversation."""
    if (assessment.get("metadata") or {}).get(SESSION):
        return None
    named: str | None = assessment.get("span_id")
    below = [span for span in found if not named or named in map(hexadecimal, (span["span_id"], *_above(span, spans)))]
    return hexadecimal(below[0]["span_id"]) if len(below) == 1 else named


def _feedback(document: Record, workload: str) -> Record:
    info = document["info"]
    (assessment,) = info["assessments"]
    span, named = assessment.get("span_id"), str(assessment["assessment_name"])
    session = (assessment.get("metadata") or {}).get(SESSION) or info["trace_metadata"].get(SESSION)
    record: Record = {"record_id": f"{info['trace_id']}-{span}" if span else session or info["trace_id"]}
    said, person = _said(assessment), (assessment.get("source") or {}).get("source_type") == "HUMAN"
    if "feedback" in assessment:
        record |= opinion(said, named, person)
    elif person and is_expected(named):
        if not span:
            raise Rejected(
                f"{named!r} is the right answer of a trace that has several calls of a model, or none; log it with the "
                "span_id of the call"
            )
        record |= {"kind": "correction", "value": payloads.answer(said)}
    else:
        record |= {"kind": "label", "value": as_text(said), "metric": named}
    made, changed = assessment.get("create_time"), assessment.get("last_update_time")
    name = assessment.get("assessment_id")
    later = f"@{changed}" if moment(changed, None) != moment(made, None) else ""
    return {
        **record, "id": f"{name}{later}" if name else None, "timestamp": changed or made or info.get("request_time"),
        "target": None if span else "episode",
    }  # fmt: skip
