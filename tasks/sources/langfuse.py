"""Langfuse: what it exports as files, or its API, from which observations and scores are each a part with a cursor.

Files hold JSON: an array, one object or an API's page as one document, or an object a line; told by content, like what
they hold (observations, scores, traces with both). See `infra/telemetry/langfuse.py` for what of it is a record.

The API is read page by page, and an interrupted reading goes on at its page. Each reading goes back `lookback` days
from the latest that was read: observations arrive late, scores are changed. A score has a time of its own, so what is
said of an old trace is found whenever it is said. Scores of a whole trace name no generation: which is its only one is
known from the observations read before, or asked for.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra import langfuse as api
from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed, moment
from infra.settings import SetupError, settings
from infra.telemetry.langfuse import SOURCE, about, camel, is_call, rows, trace_of
from tasks.sources.files import Cut, Files, LogFile, lines, whole
from tasks.sources.part import Entry, Part

ADDRESS = ("http://", "https://")
TIME: dict[api.List, str] = {"observations": "startTime", "scores": "timestamp"}


@dataclass(frozen=True)
class Langfuse:
    """A Langfuse project, or files that were exported from it.

    Attributes:
        places: Addresses of the API (https://…; keys come from the settings), files, folders (all that end in .json,
            .jsonl, .ndjson, plain or .gz) or glob patterns; without any, the API at FLYWHEEL_LANGFUSE_HOST.
        workload: The workload of calls that name none; without it, the name of the trace, or of the observation.
        lookback: Days before the latest record read that are read again.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    places: Annotated[
        tuple[str, ...], Field(description="Exported files, folders, or https://host; default FLYWHEEL_LANGFUSE_HOST")
    ] = ()
    name: Literal["langfuse"] = SOURCE
    workload: Annotated[str, Field(description="Workload of calls that name none; else the trace's name")] = ""
    lookback: Annotated[int, Field(ge=1, description="Days before the latest record that are read again; mlflow 7")] = 1

    def parts(self) -> list[Part]:
        """The files, and of each address the observations and the scores.

        Raises:
            SetupError: A file does not exist.
        """
        host = settings().langfuse_host
        places = self.places or (host,)
        paths = tuple(place for place in places if not place.startswith(ADDRESS))
        for place in places:
            if place.startswith(ADDRESS) and place.rstrip("/") != host.rstrip("/"):  # whose the keys are not
                raise SetupError(f"the keys of Langfuse belong to {host!r}; for {place!r} set FLYWHEEL_LANGFUSE_HOST")
        found: list[Part] = [*Exports(paths, self.workload).parts()]
        for host in dict.fromkeys(place.rstrip("/") for place in places if place.startswith(ADDRESS)):
            traces = Traces()
            found += [Listed(self, host, "observations", traces), Listed(self, host, "scores", traces)]
        return found

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records of an observation, a score, a trace or a list of them."""
        try:
            yield from rows(loads(raw), at, self.workload)
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))


@dataclass(frozen=True)
class Exports(Files):
    """Files of JSON."""

    suffixes = (".json", ".jsonl", ".ndjson")

    paths: tuple[str, ...]
    workload: str
    name: str = SOURCE

    def cut(self, head: bytes) -> Cut:
        """Into lines where the first is an object, else as one document."""
        first, broken, _ = head.strip().partition(b"\n")
        return lines if first[:1] == b"{" and (not broken or first.rstrip()[-1:] == b"}") else whole

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        yield from Langfuse(workload=self.workload).parse(raw, at)

    def parts(self) -> list[LogFile]:
        return super().parts() if self.paths else []


class Traces(dict[str, tuple[str, str | None]]):
    """Of traces by id: the id of the only generation, empty where there are several, and the session."""

    def note(self, call: Mapping[str, Any]) -> None:
        trace, name = str(call.get("traceId") or ""), str(call["id"])
        only = self.get(trace, (name, None))[0]
        self[trace] = (name if only == name else "", call.get("sessionId"))


class Listed:
    """A list of an API's project: a `Part`."""

    def __init__(self, spec: Langfuse, host: str, which: api.List, traces: Traces) -> None:
        self.spec, self.host, self.which, self.traces = spec, host, which, traces
        # A key's project is what is read: with other keys it is another one.
        key = hashlib.sha256(
            json.dumps([host, settings().langfuse_public_key.get_secret_value(), which]).encode()
        ).hexdigest()
        self.cursor = f"{SOURCE}:{key[:32]}"
        self.kind: str = SOURCE
        self.label = f"{which} of {host}"
        self.size, self.skipped = None, 0  # nobody counts them

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The records after `position`, those of `lookback` days before it, or the rest of a reading that broke off.

        Raises:
            SetupError: The API cannot be read.
        """
        with api.connected(self.host) as client:
            try:
                yield from self._read(client, position)
            except api.Refused:
                if not position or not position["next"]:
                    raise
                # The API forgot the page that the reading broke off at.
                yield from self._read(client, {**position, "next": None})

    def _read(self, client: api.Langfuse, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        until, since, go_on, known = None, None, None, 0
        newest = ""
        if position:
            until, since, go_on, known = (position[key] for key in ("until", "since", "next", "rows"))
            newest = position["newest"]
            if not go_on and until:
                since = (datetime.fromisoformat(until) - timedelta(days=self.spec.lookback)).isoformat()
        wanted = {api.SINCE[self.which]: since} if since else {}
        again = done = 0
        held: Entry | None = None
        for page in client.pages(self.which, wanted, go_on):
            for item in page.items:
                for entry, time in self._entries(client, item):
                    again += until is not None and time <= until
                    done, newest = done + 1, max(newest, time)
                    if held:
                        yield held
                    held = entry._replace(done=done)
            after = {"until": until, "since": since, "next": page.next, "newest": newest}
            if not page.next:
                after = {"until": newest, "since": None, "next": None, "newest": newest}
            # Kept back until the next page, for pages without a record of ours.
            held = held and held._replace(position={**after, "rows": known + done - again})
        if held:
            yield held
        self.skipped = max(0, known - again)

    def _entries(self, client: api.Langfuse, item: Any) -> Iterator[tuple[Entry, str]]:
        """The records of an observation or score, each with its time."""
        if isinstance(item, dict):
            item = camel(item)
            if self.which == "scores":
                item = self._placed(client, item)
            elif is_call(item):
                self.traces.note(item)
        time = _time(item, TIME[self.which])
        at = time or datetime.now(UTC)
        name = item.get("id") if isinstance(item, dict) else "?"
        for parsed in self.spec.parse(json.dumps(item).encode(), at):
            digest = hashlib.sha256(parsed.raw).hexdigest()
            where = f"{self.which[:-1]} {name}"
            yield Entry(where, parsed.raw, digest, parsed.row, parsed.reason, None, 0), time.isoformat() if time else ""

    def _placed(self, client: api.Langfuse, score: dict[str, Any]) -> dict[str, Any]:
        """A score that names the only generation of the trace it is about."""
        trace = trace_of(score)
        if not trace:
            return score
        if trace not in self.traces:
            for call in next(client.pages("observations", {"traceId": trace})).items:
                if isinstance(call, dict) and is_call(call):
                    self.traces.note(call)
        only, session = self.traces.setdefault(trace, ("", None))
        return about(score, only, session)


def _time(item: Any, field: str) -> datetime | None:
    """When it was; None where it does not say so in a way that is understood."""
    try:
        found: datetime | None = moment(item.get(field), None) if isinstance(item, dict) else None
    except Rejected:
        return None
    return found
