"""Langfuse's observations and scores as records of traffic and feedback.

An observation of type GENERATION is a call of a model, an interaction; other observations are no rows, nor are the
calls of Langfuse's own evaluators (their environment begins with "langfuse") and calls that have not ended.

| of a record  | is                                                                                          |
|--------------|---------------------------------------------------------------------------------------------|
| id           | the observation's                                                                           |
| conversation | the session, else the trace                                                                 |
| client       | the user                                                                                    |
| workload     | `flywheel.workload` of the metadata, or the tag `flywheel.workload:NAME`; what the reader   |
|              | is told; the name of the trace, else of the observation                                     |

A score is about the observation it names; one of a trace about its only generation, where that is known, and otherwise,
as one of a session, about the conversation. What it says is read by the rule of `opinions.py`: EVAL is Langfuse's
judge, ANNOTATION and API (what an application sends) are persons. A CORRECTION is one, and needs to be about a
generation. Scores of experiments are no rows; one that was changed is another record than before.

The public API says `traceId` and gives inputs and outputs as text, the export to blob storage says `trace_id`, a trace
by itself holds its observations and scores: all are read, told by their content.

Source: Langfuse's public API, `fern/apis/server/definition` (observations, scores, scores-v3, commons), and its "Blob
storage export field reference".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from infra.database.jsontext import Rejected
from infra.database.messages import kind
from infra.database.records import Parsed, digest, moment, number, parse
from infra.telemetry import payloads
from infra.telemetry.opinions import opinion
from infra.telemetry.payloads import structure

SOURCE: Literal["langfuse"] = "langfuse"
Record = dict[str, Any]

GENERATION = "GENERATION"
WORKLOAD = "flywheel.workload"
OF_TRACE = {"sessionId": "sessionId", "userId": "userId", "name": "traceName", "tags": "tags"}
USAGE = {
    "prompt_tokens": ("input", "promptTokens", "inputUsage"),
    "completion_tokens": ("output", "completionTokens", "outputUsage"),
}


def rows(document: Any, at: datetime, workload: str = "") -> Iterator[Parsed]:
    """The records of an observation, a score, a trace that holds both, or of a list or an API's page of such.

    Each comes with its own JSON; `at` is the time of those that have none.

    Raises:
        Rejected: It is none of these.
    """
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    for one in document if isinstance(document, list) else [document]:
        try:
            found = list(_found(one))
        except Rejected as problem:
            yield Parsed(json.dumps(one).encode(), None, str(problem))
            continue
        for record in found:
            yield _parsed(record, at, workload)


def _found(one: Any) -> Iterator[Record]:
    """The generations and scores in an object."""
    if not isinstance(one, dict):
        raise Rejected(f"a record is {kind(one)}, not an object")
    record = camel(one)
    if is_score(record):
        yield from [record] if not _of_experiment(record) else []
    elif isinstance(record.get("observations"), list):
        yield from _of_trace(record)
    elif "type" in record and "startTime" in record:
        yield from [record] if is_call(record) else []
    elif not {"timestamp", "createdAt"} & set(record):  # a trace by itself: its calls are elsewhere
        raise Rejected("neither an observation (type, startTime), a score (name, value) nor a trace (observations)")


def _of_trace(trace: Record) -> Iterator[Record]:
    held = {theirs: trace[ours] for ours, theirs in OF_TRACE.items() if trace.get(ours)}
    observed = [camel(one) for one in trace["observations"] if isinstance(one, dict)]
    calls = [one for one in observed if is_call(one)]
    named = structure(trace.get("metadata"))
    named = {WORKLOAD: named[WORKLOAD]} if isinstance(named, dict) and WORKLOAD in named else {}
    for one in calls:
        metadata = structure(one.get("metadata"))
        said = {**named, **metadata} if isinstance(metadata, dict) else named
        yield {**held, **{key: value for key, value in one.items() if value is not None}, "metadata": said}
    only = str(calls[0]["id"]) if len(calls) == 1 else ""
    for score in trace.get("scores") or ():
        if isinstance(score, dict):
            yield about(camel(score), only, trace.get("sessionId"))


def camel(record: Record) -> Record:
    """With names as the API has them; the export has them in snake case."""
    return {re.sub(r"_([a-z])", lambda found: found[1].upper(), key): held for key, held in record.items()}


def is_score(record: Record) -> bool:
    return "dataType" in record or ("value" in record and "name" in record and "type" not in record)


def _of_experiment(score: Record) -> bool:
    subject = score.get("subject")
    return bool(score.get("datasetRunId")) or (isinstance(subject, dict) and subject.get("kind") == "experiment")


def is_call(observation: Record) -> bool:
    """Whether it is a call of a model that has ended, by the application."""
    ended = any(observation.get(key) is not None for key in ("endTime", "output"))
    ours = not str(observation.get("environment") or "").startswith("langfuse")
    return observation.get("type") == GENERATION and ended and ours


def about(score: Record, only: str, session: str | None) -> Record:
    """A score that also says what it is about, where only its trace says so.

    Args:
        only: Id of the trace's only generation; empty where there are several.
        session: Of the trace.
    """
    flat = _flat(score)
    if flat.get("observationId") or flat.get("sessionId") or not flat.get("traceId"):
        return score
    return {**score, "observationId": only} if only else {**score, "sessionId": session} if session else score


def trace_of(score: Record) -> str | None:
    """The trace that a score is about as a whole."""
    flat = _flat(score)
    return None if flat.get("observationId") or flat.get("sessionId") else flat.get("traceId")


def _flat(score: Record) -> Record:
    """A score as version 2 of the API says it: version 3 has a `subject`."""
    subject = score.get("subject")
    if not isinstance(subject, dict):
        return score
    named = {"trace": "traceId", "observation": "observationId", "session": "sessionId"}.get(str(subject.get("kind")))
    more = {"traceId": subject["traceId"]} if subject.get("traceId") else {}
    return {**({named: subject.get("id")} if named else {}), **more, **score}


def _parsed(record: Record, at: datetime, workload: str) -> Parsed:
    raw = json.dumps(record).encode()
    try:
        shaped = _feedback(_flat(record)) if is_score(record) else _interaction(record, workload)
        return Parsed(raw, parse(shaped, source=SOURCE, at=at, workload=workload))
    except Rejected as problem:
        return Parsed(raw, None, str(problem))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        return Parsed(raw, None, f"the record is broken: {problem!r}")


def _interaction(call: Record, workload: str) -> Record:
    model = call.get("providedModelName") or call.get("model")
    request = payloads.request(call.get("input")) | payloads.options(structure(call.get("modelParameters")))
    if model:
        request["model"] = model
    output = call.get("output")
    if output is None and call.get("level") == "ERROR":
        response: Record = {"error": {"message": call.get("statusMessage") or "error"}}
    else:
        response = payloads.response(output)
    if model:
        response["model"] = model
    if usage := _usage(call):
        response["usage"] = usage
    return {
        "id": call["id"], "timestamp": call["startTime"], "client_id": call.get("userId"),
        "conversation_id": call.get("sessionId") or call.get("traceId"), "latency_ms": _latency(call),
        "workload_id": _workload(call) or workload or call.get("traceName") or call.get("name"),
        "request": request, "response": response,
    }  # fmt: skip


def _usage(call: Record) -> Record:
    said = structure(call.get("usageDetails") or call.get("usage")) or {}
    found = {
        ours: next((held[key] for key in theirs for held in (said, call) if number(held.get(key)) is not None), None)
        for ours, theirs in USAGE.items()
    }
    return {ours: int(held) for ours, held in found.items() if held is not None}


def _latency(call: Record) -> float | None:
    """Milliseconds; the API says `latency` in seconds, some exports in milliseconds, so the times go first."""
    start, end = (moment(call.get(key), None) for key in ("startTime", "endTime"))
    if start and end:
        return 1000 * float((end - start).total_seconds())
    seconds = number(call.get("latency"))
    return None if seconds is None else 1000 * seconds


def _workload(call: Mapping[str, Any]) -> str | None:
    metadata = structure(call.get("metadata"))
    if isinstance(metadata, dict) and metadata.get(WORKLOAD):
        return str(structure(metadata[WORKLOAD]))
    tags = structure(call.get("tags"))
    said = [str(tag) for tag in tags] if isinstance(tags, list) else []
    return next((tag[len(WORKLOAD) + 1 :] for tag in said if re.match(re.escape(WORKLOAD) + "[:=].", tag)), None)


def _feedback(score: Record) -> Record:
    call, whole = score.get("observationId"), score.get("sessionId") or score.get("traceId")
    sort, named = score.get("dataType"), score.get("name")
    word, value = score.get("stringValue"), score.get("value")
    if sort == "CORRECTION":
        said = word or value
        if not said or not isinstance(said, str):
            raise Rejected("a correction says nothing")
        if not call:
            raise Rejected(
                f"a correction of trace {whole!r}, where nobody knows which generation is meant; read it from the API, "
                "or from an export of the trace with its observations"
            )
        record: Record = {"kind": "correction", "value": payloads.answer(said)}
    else:
        said = word if sort in ("CATEGORICAL", "TEXT") and word else value if value is not None else word
        if sort == "BOOLEAN":
            said = str(said).lower() in ("1", "1.0", "true")
        record = opinion(said, named, person=score.get("source") != "EVAL")
    return {
        **record, "id": f"{score['id']}-{digest([call or whole, said])[:8]}", "record_id": call or whole,
        "timestamp": score.get("updatedAt") or score.get("timestamp"), "target": None if call else "episode",
    }  # fmt: skip
