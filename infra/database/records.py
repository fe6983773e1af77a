"""One record of traffic → a row of its table.

A record is what NVIDIA's blueprint logs, `{id?, timestamp?, workload_id?, client_id?, request, response}`, or feedback,
`{record_id, timestamp?, kind, value}`. Ids that are missing are derived from the content, so that reading a record
again, from a copy or under another file name, is recognized. How rows are stored is in `store.py`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from infra.database.jsontext import Rejected, dumps
from infra.database.messages import assistant_message, kind, normalized_request, normalized_response

LONGEST_NAME = 512  # PostgreSQL indexes no more than 2,700 bytes


class InteractionRow(NamedTuple):
    """A row of `tables.Interaction` before it is stored; a million of them are made faster than mapped objects.

    Request and response are bytes where their JSON is written: that row is ready to be stored (`store.ready`).
    """

    source: str
    external_id: str
    workload: str
    conversation: str
    client: str | None
    at: datetime
    model: str | None
    request: dict[str, Any] | bytes
    response: dict[str, Any] | bytes
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float | None
    digest: str


class FeedbackRow(NamedTuple):
    """A row of `tables.Feedback` before it is stored; its value is bytes where that is JSON, as above."""

    source: str
    external_id: str
    record_id: str
    at: datetime
    kind: str
    value: Any
    digest: str


Row = InteractionRow | FeedbackRow


class Parsed(NamedTuple):
    """What became of a record: the row that it is, or the reason why it is none and the bytes to keep of it."""

    raw: bytes
    row: Row | None
    reason: str = ""


def parse(record: Any, *, source: str, at: datetime, workload: str = "") -> Row:
    """A record as a row of its table.

    Args:
        record: Parsed JSON.
        source: Kind of source, which makes ids unique: "jsonl", "gateway".
        at: The time of a record that has none.
        workload: The workload of an interaction that names none.

    Raises:
        Rejected: It is neither, or a part of it cannot be understood.
    """
    if not isinstance(record, dict):
        raise Rejected(f"a record is {kind(record)}, not an object")
    if "request" in record or "response" in record:
        return interaction(record, source=source, at=at, workload=workload)
    if "record_id" in record or "kind" in record:
        return feedback(record, source=source, at=at)
    raise Rejected("neither an interaction (request, response) nor feedback (record_id, kind, value)")


def interaction(record: Mapping[str, Any], *, source: str, at: datetime, workload: str = "") -> InteractionRow:
    """`{id?, timestamp?, workload_id?, client_id?, conversation_id?, latency_ms?, request, response}` as a row.

    Raises:
        Rejected: A part of it cannot be understood, or the workload is nowhere named.
    """
    if "response" not in record:
        golden = " (a golden item, with `expected`, measures and never trains)" if "expected" in record else ""
        raise Rejected(f"the request has no response{golden}")
    request, response = normalized_request(record.get("request")), normalized_response(record["response"])
    named = name(record, "workload_id", "workload") or workload
    if not named:
        raise Rejected("no workload_id; name the workload of such records with the source's `workload` option")
    metadata = record["metadata"] if isinstance(record.get("metadata"), dict) else {}
    usage = response["usage"] if isinstance(response.get("usage"), dict) else {}
    answers = [choice["message"] for choice in response.get("choices") or ()]
    client = name(record, "client_id")
    return InteractionRow(
        source=source,
        external_id=name(record, "id") or name(response, "id") or digest(record),
        workload=named,
        conversation=name(record, "conversation_id")
        or name(metadata, "conversation_id", "session_id", "episode_id")
        or opening(named, client, request, response),
        client=client,
        at=moment(record.get("timestamp"), None) or moment(response.get("created"), at, "response.created"),
        model=name(response, "model") or name(request, "model"),
        request=request,
        response=response,
        prompt_tokens=count(usage.get("prompt_tokens")),
        completion_tokens=count(usage.get("completion_tokens")),
        latency_ms=number(record.get("latency_ms", metadata.get("latency_ms"))),
        digest=content(named, request["messages"], request.get("tools"), answers),
    )


def feedback(record: Mapping[str, Any], *, source: str, at: datetime) -> FeedbackRow:
    """`{record_id, timestamp?, kind, value}` as a row, its value in one shape.

    | kind | value | kept as |
    |---|---|---|
    | thumb | 1, -1, true, false, "up", "down" | 1 or -1 |
    | rating | 1 to 5; any number with `scale: [worst, best]` or with the name of a `metric` | the number |
    | correction | the right answer: text or a message | an assistant message |
    | preference | `{chosen, rejected}`, each text or a message | two assistant messages |
    | label | a word or two: "off topic", "refund" | the text |

    Where a metric, a scale or a target other than the record (`episode`: the whole conversation) is named, a thumb,
    rating or label is kept as `{value, metric?, scale?, target?}`.

    Raises:
        Rejected: A part of it cannot be understood.
    """
    about = name(record, "record_id")
    if not about:
        raise Rejected("feedback has no record_id")
    if "value" not in record:
        raise Rejected("feedback has no value")
    sort, value = record.get("kind"), record["value"]
    if sort == "thumb":
        kept: Any = _qualified(record, thumb(value))
    elif sort == "rating":
        kept = _qualified(record, rating(record, value))
    elif sort == "label":
        if not isinstance(value, str) or not value.strip():
            raise Rejected(f"a label's value is {kind(value) if value != '' else 'empty'}, not text")
        kept = _qualified(record, value)
    elif sort == "correction":
        kept = _answer(value, "value")
    elif sort == "preference":
        if not isinstance(value, dict) or not {"chosen", "rejected"} <= set(value):
            raise Rejected("a preference's value is not {chosen, rejected}")
        kept = {side: _answer(value[side], f"value.{side}") for side in ("chosen", "rejected")}
    else:
        raise Rejected(f"feedback kind is {sort!r}, known are thumb, rating, correction, preference, label")
    return FeedbackRow(
        source=source,
        external_id=name(record, "id") or digest(record),
        record_id=about,
        at=moment(record.get("timestamp"), at),
        kind=sort,
        value=kept,
        digest=content(about, sort, kept),
    )


def thumb(value: Any) -> int:
    meant = {"1": 1, "true": 1, "up": 1, "-1": -1, "false": -1, "down": -1}.get(str(value).lower())
    if meant is None:
        raise Rejected(f"a thumb's value is {str(value)[:40]!r}, not 1 or -1")
    return meant


def rating(record: Mapping[str, Any], value: Any) -> float:
    score = number(value)
    if score is None:
        raise Rejected(f"a rating's value is {kind(value)}, not a number")
    worst, best = 1.0, 5.0
    if (scale := record.get("scale")) is not None:
        ends = [number(end) for end in scale] if isinstance(scale, list) and len(scale) == 2 else [None]
        if None in ends or ends[0] == ends[1]:
            raise Rejected("a rating's scale is not [worst, best]")
        worst, best = (float(end) for end in ends if end is not None)
    elif record.get("metric"):
        return score
    if not min(worst, best) <= score <= max(worst, best):
        raise Rejected(f"a rating's value is {score:g}, outside {worst:g} to {best:g}; name its `scale`: [worst, best]")
    return score


def _answer(said: Any, place: str) -> dict[str, Any]:
    try:
        return assistant_message(said)
    except Rejected as problem:
        raise Rejected(f"{place}: {problem}") from problem


def _qualified(record: Mapping[str, Any], value: float | str) -> Any:
    target = name(record, "target")
    more = {
        "metric": name(record, "metric"),
        "scale": record.get("scale"),
        "target": None if target in ("record", "inference") else target,
    }
    given = {key: said for key, said in more.items() if said is not None}
    return {"value": value, **given} if given else value


def name(record: Mapping[str, Any], *keys: str) -> str | None:
    """The first of these fields that is there, as text that every database stores and indexes.

    Raises:
        Rejected: It is something else.
    """
    for key in keys:
        value = record.get(key)
        if value is None or value == "":
            continue
        if isinstance(value, str) and len(value) <= LONGEST_NAME and value.isascii() and value.isprintable():
            return value
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise Rejected(f"{key} is {kind(value)}, not text")
        text = str(value)
        if len(text) > LONGEST_NAME:
            raise Rejected(f"{key} has {len(text)} characters, over {LONGEST_NAME}")
        if "\x00" in text or (not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)):
            raise Rejected(f"{key} has characters that no database stores")
        return text
    return None


def moment(value: Any, otherwise: datetime | None, field: str = "timestamp") -> Any:
    """A time in UTC: epoch seconds (or milli-, micro-, nanoseconds, told by their size), or ISO 8601.

    Raises:
        Rejected: It is no time.
    """
    if value is None:
        return otherwise
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            read = datetime.fromisoformat(value)
            return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC)
        if isinstance(value, bool):
            raise ValueError
        seconds = float(value)
        while 1e11 < abs(seconds) < math.inf:  # 1e11 s is the year 5138
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as problem:
        raise Rejected(f"{field} {str(value)[:40]!r} is neither epoch seconds nor ISO 8601") from problem


def number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def digest(record: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def content(*parts: Any) -> str:
    """A digest of what makes two records of one id the same: what was said, not when or how it was measured."""
    return hashlib.blake2b(dumps(parts, sort_keys=True), digest_size=16).hexdigest()


def opening(workload: str, client: str | None, request: dict[str, Any], response: dict[str, Any]) -> str:
    """The name of a conversation that has none: how it opened, which all its turns repeat.

    The first answer is part of it, or everyone who began with "hello" would be one conversation.
    """
    said = request["messages"] + [choice["message"] for choice in response.get("choices", [])[:1]]
    first = next((n for n, message in enumerate(said) if message["role"] == "user"), 0)
    later = [message for message in said[first:] if message["role"] == "assistant"]
    answer = later[0] if later else {}
    return digest([workload, client, said[first].get("content"), answer.get("content"), answer.get("tool_calls")])[:32]
