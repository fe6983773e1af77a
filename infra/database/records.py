"""One record of traffic → a row, and rows → the database, each once.

A record is what NVIDIA's blueprint logs, `{id?, timestamp?, workload_id?, client_id?, request, response}`, or feedback,
`{record_id, timestamp?, kind, value}`. Ids that are missing are derived from the content, so that reading a record
again, from a copy or under another file name, is recognized. The gateway stores by the same functions as `ingest`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from sqlalchemy import Table, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from infra.database.messages import Rejected, assistant_message, kind, normalized_request, normalized_response
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine, now

Row = Interaction | Feedback
Outcome = Literal["stored", "duplicate", "conflict"]
Fate = Literal["stored", "duplicate", "quarantined"]
LONGEST_NAME = 512  # PostgreSQL indexes no more than 2,700 bytes
CHUNK = 200


class Parsed(NamedTuple):
    """What became of a record: the row that it is, or the reason why it is none and the bytes to keep of it."""

    raw: bytes
    row: Row | None
    reason: str = ""


class Found(Protocol):
    """A record as it was found: `Parsed`, with its place in the source and the sha256 of its bytes."""

    @property
    def where(self) -> str: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def digest(self) -> str: ...
    @property
    def row(self) -> Row | None: ...
    @property
    def reason(self) -> str: ...


def parse(record: Any, *, source: str, at: datetime, workload: str = "") -> Row:
    """A record as an interaction or a feedback.

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


def interaction(record: Mapping[str, Any], *, source: str, at: datetime, workload: str = "") -> Interaction:
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
    client = name(record, "client_id")
    return Interaction(
        source=source,
        external_id=name(record, "id") or name(response, "id") or digest(record),
        workload=named,
        conversation=name(record, "conversation_id")
        or name(metadata, "conversation_id", "session_id", "episode_id")
        or opening(named, client, request, response),
        client=client,
        at=moment(record.get("timestamp"), None) or moment(response.get("created"), at),
        model=name(response, "model") or name(request, "model"),
        request=request,
        response=response,
        prompt_tokens=count(usage.get("prompt_tokens")),
        completion_tokens=count(usage.get("completion_tokens")),
        latency_ms=number(record.get("latency_ms", metadata.get("latency_ms"))),
    )


def feedback(record: Mapping[str, Any], *, source: str, at: datetime) -> Feedback:
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
            raise Rejected(f"a label is {kind(value) if value != '' else 'empty'}, not text")
        kept = _qualified(record, value)
    elif sort == "correction":
        kept = assistant_message(value)
    elif sort == "preference":
        if not isinstance(value, dict) or not {"chosen", "rejected"} <= set(value):
            raise Rejected("a preference's value is not {chosen, rejected}")
        kept = {side: assistant_message(value[side]) for side in ("chosen", "rejected")}
    else:
        raise Rejected(f"feedback kind is {sort!r}, known are thumb, rating, correction, preference, label")
    return Feedback(
        source=source,
        external_id=name(record, "id") or digest(record),
        record_id=about,
        at=moment(record.get("timestamp"), at),
        kind=sort,
        value=kept,
    )


def thumb(value: Any) -> int:
    meant = {"1": 1, "true": 1, "up": 1, "-1": -1, "false": -1, "down": -1}.get(str(value).lower())
    if meant is None:
        raise Rejected(f"a thumb is {str(value)[:40]!r}, not 1 or -1")
    return meant


def rating(record: Mapping[str, Any], value: Any) -> float:
    score = number(value)
    if score is None:
        raise Rejected(f"a rating is {kind(value)}, not a number")
    worst, best = 1.0, 5.0
    if (scale := record.get("scale")) is not None:
        ends = [number(end) for end in scale] if isinstance(scale, list) and len(scale) == 2 else [None]
        if None in ends or ends[0] == ends[1]:
            raise Rejected("a rating's scale is not [worst, best]")
        worst, best = (float(end) for end in ends if end is not None)
    elif record.get("metric"):
        return score
    if not min(worst, best) <= score <= max(worst, best):
        raise Rejected(f"a rating is {score:g}, outside {worst:g} to {best:g}; name its `scale`: [worst, best]")
    return score


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
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise Rejected(f"{key} is {kind(value)}, not text")
        text = str(value)
        if len(text) > LONGEST_NAME:
            raise Rejected(f"{key} has {len(text)} characters, over {LONGEST_NAME}")
        if "\x00" in text or (not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)):
            raise Rejected(f"{key} has characters that no database stores")
        return text
    return None


def moment(value: Any, otherwise: datetime | None) -> Any:
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
        seconds = float(value)
        while 1e11 < abs(seconds) < math.inf:  # 1e11 s is the year 5138
            seconds /= 1000
        return None if isinstance(value, bool) else datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as problem:
        raise Rejected(f"timestamp {str(value)[:40]!r} is neither epoch seconds nor ISO 8601") from problem


def number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def digest(record: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def opening(workload: str, client: str | None, request: dict[str, Any], response: dict[str, Any]) -> str:
    """The name of a conversation that has none: how it opened, which all its turns repeat.

    The first answer is part of it, or everyone who began with "hello" would be one conversation.
    """
    said = request["messages"] + [choice["message"] for choice in response.get("choices", [])[:1]]
    first = next((n for n, message in enumerate(said) if message["role"] == "user"), 0)
    later = [message for message in said[first:] if message["role"] == "assistant"]
    answer = later[0] if later else {}
    return digest([workload, client, said[first].get("content"), answer.get("content"), answer.get("tool_calls")])[:32]


def accept(db: Session, source: str, found: Sequence[Found]) -> list[tuple[Fate, str]]:
    """Store what is a row, keep the rest in quarantine, and let out of it what has been understood since.

    Returns what became of each record, in order, and of one that lies in quarantine why.
    """
    good = [entry.row for entry in found if entry.row is not None]
    outcomes = iter(store(db, good))
    fates: list[tuple[Fate, str]] = []
    kept, fine = [], []
    for entry in found:
        outcome = next(outcomes) if entry.row is not None else "conflict"
        if outcome != "conflict":
            fates.append((outcome, ""))
            fine.append(entry.digest)
            continue
        reason = entry.reason
        if entry.row is not None:
            reason = f"id {entry.row.external_id!r} is that of another record; give each its own id, or none"
        fates.append(("quarantined", reason))
        kept.append(Quarantine(source=source, position=entry.where, digest=entry.digest, raw=entry.raw, reason=reason))
    quarantine(db, kept)
    if db.scalar(select(Quarantine.id).where(Quarantine.source == source).limit(1)):
        release(db, source, sorted(fine))
    return fates


def store(db: Session, rows: Sequence[Row]) -> list[Outcome]:
    """Insert what is new; what came of each row, in order.

    "duplicate": the same record is there, or earlier in `rows`. "conflict": another record has its (source, external
    id); nothing is stored then, and the caller has to keep the record elsewhere.
    """
    outcomes: list[Outcome] = ["duplicate"] * len(rows)
    for table in (Interaction, Feedback):
        mine = [n for n, row in enumerate(rows) if isinstance(row, table)]
        firsts: dict[tuple[str, str], int] = {}
        for n in mine:
            firsts.setdefault((rows[n].source, rows[n].external_id), n)
        # In one order everywhere: two ingests at once would otherwise wait for each other's rows.
        new = _insert(db, table, [_values(rows[n]) for _, n in sorted(firsts.items())])
        for key in new:
            outcomes[firsts[key]] = "stored"
        others = [n for n in mine if outcomes[n] != "stored"]
        kept = _kept(db, table, sorted({(rows[n].source, rows[n].external_id) for n in others}))
        for n in others:
            if content(rows[n]) != kept[rows[n].source, rows[n].external_id]:
                outcomes[n] = "conflict"
    return outcomes


def content(row: Row) -> Any:
    """What makes two rows of one id the same record."""
    if isinstance(row, Feedback):
        return row.record_id, row.kind, row.value
    answers = [choice["message"] for choice in row.response.get("choices") or []]
    return row.workload, row.request["messages"], row.request.get("tools"), answers


def quarantine(db: Session, entries: Sequence[Quarantine]) -> None:
    """Keep records that cannot be understood; the same bytes are kept once a source."""
    unique = {(entry.source, entry.digest): _values(entry) for entry in entries}
    _insert(db, Quarantine, [unique[key] for key in sorted(unique)])


def release(db: Session, source: str, digests: Sequence[str]) -> None:
    """Take out of quarantine what has been understood since."""
    for start in range(0, len(digests), CHUNK):
        some = digests[start : start + CHUNK]
        db.execute(delete(Quarantine).where(Quarantine.source == source, Quarantine.digest.in_(some)))


def move_cursor(db: Session, source: str, position: dict[str, Any]) -> None:
    values = {"source": source, "position": position, "moved": now()}
    statement = _dialect(db).insert(_table(Cursor)).values(values)
    moved = {"position": statement.excluded.position, "moved": statement.excluded.moved}
    db.execute(statement.on_conflict_do_update(index_elements=["source"], set_=moved))


def _insert(db: Session, table: type[Any], values: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Insert unless there; the keys that were new, told by RETURNING: a row count differs from driver to driver."""
    target = _table(table)
    key = target.c.source, target.c.digest if table is Quarantine else target.c.external_id
    statement = _dialect(db).insert(target)
    new: set[tuple[str, str]] = set()
    for start in range(0, len(values), CHUNK):
        some = [{"created": now(), **row} for row in values[start : start + CHUNK]]
        inserted = db.execute(statement.values(some).on_conflict_do_nothing(index_elements=key).returning(*key))
        new.update((source, external_id) for source, external_id in inserted)
    return new


def _kept(db: Session, table: type[Any], keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for start in range(0, len(keys), CHUNK):
        some = keys[start : start + CHUNK]
        rows = db.scalars(select(table).where(tuple_(table.source, table.external_id).in_(some)))
        found |= {(row.source, row.external_id): content(row) for row in rows}
    return found


def _values(row: Row | Quarantine) -> dict[str, Any]:
    columns = [column.key for column in _table(type(row)).columns]
    return {key: getattr(row, key) for key in columns if key not in ("id", "created")}


def _table(mapped: type[Any]) -> Table:
    table: Table = mapped.__table__
    return table


def _dialect(db: Session) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[db.get_bind().dialect.name]
