"""Langfuse's exports, and its API as its documentation describes it: a small server of ours answers in its place, for a
real Langfuse (PostgreSQL, ClickHouse, Redis and S3) cannot run here.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select

from infra import langfuse as api
from infra.database.policy import judge
from infra.database.session import session
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources.langfuse import Langfuse
from tests.conftest import answering, living_in
from tests.infra.gateway.test_app import rows
from tests.tasks.cases_of import cases_of

START = datetime(2026, 11, 1, tzinfo=UTC)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How cold is Oslo?"}]


def stamp(hours: float) -> str:
    return (START + timedelta(hours=hours)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def generation(n: int, hours: float = 0, trace: str = "", **said: Any) -> dict[str, Any]:
    """An observation as version 2 of the API lists it."""
    return {
        "id": f"obs-{n}", "traceId": trace or f"trace-{n}", "startTime": stamp(hours or n),
        "endTime": (START + timedelta(hours=hours or n, seconds=1.5)).isoformat(), "projectId": "p-1",
        "parentObservationId": None, "type": "GENERATION", "name": "OpenAI-generation", "level": "DEFAULT",
        "statusMessage": None, "environment": "production", "userId": "ann", "sessionId": None,
        "input": json.dumps([ASKED[0], {"role": "user", "content": f"question {n}"}]),
        "output": json.dumps({"role": "assistant", "content": f"answer {n}"}), "metadata": {},
        "providedModelName": "gpt-4.1", "modelParameters": {"temperature": 0.2, "api_key": "sk-1"},
        "usageDetails": {"input": 12, "output": 5, "total": 17}, "latency": 1.5, "tags": [], "traceName": "weather",
        **said,
    }  # fmt: skip


def score(n: int, value: Any, sort: str, hours: float = 0, **said: Any) -> dict[str, Any]:
    """A score as version 3 of the API lists it, about a trace unless told otherwise."""
    return {
        "id": f"score-{n}", "projectId": "p-1", "name": "feedback", "value": value, "dataType": sort, "source": "API",
        "timestamp": stamp(hours or n), "environment": "production", "createdAt": stamp(hours or n),
        "updatedAt": stamp(hours or n), "subject": {"kind": "trace", "id": f"trace-{n}"}, **said,
    }  # fmt: skip


def of(call: int, trace: int | None = None) -> dict[str, Any]:
    return {"kind": "observation", "id": f"obs-{call}", "traceId": f"trace-{trace or call}"}


class Server(BaseHTTPRequestHandler):
    """Lists newest first, by cursor (new) or by page (old), to who has the keys."""

    lists: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    answers: ClassVar[list[tuple[int, dict[str, str]]]] = []
    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []
    paths: ClassVar[dict[str, str]] = {}
    page = 3

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        wanted = {key: values[0] for key, values in parse_qs(address.query).items()}
        self.asked.append((address.path, wanted))
        if self.headers["authorization"] != "Basic " + base64.b64encode(b"pk:sk").decode():
            self.answer(401, {"message": "Invalid credentials"})
        elif self.answers:
            status, headers = self.answers.pop(0)
            self.answer(status, {"message": "later"}, headers)
        elif (which := self.paths.get(address.path)) is None:
            self.answer(404, {"message": "Not found"})
        else:
            self.answer(200, self.listed(which, address.path, wanted))

    def listed(self, which: str, path: str, wanted: dict[str, str]) -> dict[str, Any]:
        time, since = ("startTime", "fromStartTime") if which == "observations" else ("timestamp", "fromTimestamp")
        found = sorted(self.lists[which], key=lambda one: one[time], reverse=True)
        found = [one for one in found if one[time] >= wanted.get(since, "")[:19]]
        found = [one for one in found if wanted.get("traceId") in (None, one.get("traceId"))]
        size, total = self.page, len(found)
        if "/v1" not in path and path in ("/api/public/observations", "/api/public/v2/scores"):
            page = int(wanted.get("page", 1))
            meta = {"page": page, "limit": size, "totalItems": total, "totalPages": -(-total // size)}
            return {"data": found[(page - 1) * size : page * size], "meta": meta}
        start = int(base64.b64decode(wanted["cursor"])) if "cursor" in wanted else 0
        more = {"cursor": base64.b64encode(str(start + size).encode()).decode()} if start + size < total else {}
        return {"data": found[start : start + size], "meta": {"limit": size, **more}}

    def answer(self, status: int, said: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def langfuse(tmp_path: Path) -> Iterator[type[Server]]:
    """The API, at the address and with the keys of the settings."""
    Server.lists = {"observations": [], "scores": []}
    Server.answers, Server.asked = [], []
    Server.paths = {"/api/public/v2/observations": "observations", "/api/public/v3/scores": "scores"}
    keys = {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
    with (
        answering(ThreadingHTTPServer(("127.0.0.1", 0), Server)) as host,
        living_in(tmp_path / "home", TEACHER="", LANGFUSE_HOST=host, **keys),
    ):
        yield Server


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, in no time."""
    waits: list[float] = []
    monkeypatch.setattr(api.time, "sleep", waits.append)
    return waits


def read(*places: str, **options: Any) -> dict[str, Any]:
    counts = ingest(Langfuse(places, **options))
    assert counts["rows"] == sum(counts[key] for key in ("interactions", "feedback", "duplicates", "quarantined"))
    return counts


def test_a_generation_is_an_interaction(langfuse: type[Server]) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    langfuse.lists["observations"] = [
        generation(1, sessionId="s-1", input=json.dumps({"messages": ASKED, "tools": tools})),
        generation(2, type="SPAN"),
    ]
    counts = read()
    assert (counts["rows"], counts["workloads"]) == (1, ["weather"])
    (row,) = rows(Interaction)
    assert (row.source, row.external_id, row.conversation, row.client) == ("langfuse", "obs-1", "s-1", "ann")
    assert (row.model, row.prompt_tokens, row.completion_tokens, row.latency_ms) == ("gpt-4.1", 12, 5, 1500)
    assert row.request == {"messages": ASKED, "tools": tools, "temperature": 0.2, "model": "gpt-4.1"}
    assert row.response["choices"][0]["message"] == {"role": "assistant", "content": "answer 1"}
    assert row.at == START + timedelta(hours=1)


def test_every_page_is_read_and_reading_again_adds_nothing(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(n) for n in range(1, 41)]
    langfuse.lists["scores"] = [score(n, True, "BOOLEAN") for n in range(1, 11)]
    counts = read()
    assert (counts["interactions"], counts["feedback"], counts["duplicates"]) == (40, 10, 0)
    langfuse.lists["observations"].append(generation(41))
    langfuse.asked.clear()
    again = read()
    assert (again["rows"], again["interactions"], again["feedback"], again["duplicates"]) == (51, 1, 0, 50)
    since = {wanted.get("fromStartTime", wanted.get("fromTimestamp")) for _, wanted in langfuse.asked}
    since.discard(None)  # what was asked of a score's trace
    assert since == {(START + timedelta(hours=40 - 24)).isoformat(), (START + timedelta(hours=10 - 24)).isoformat()}


def test_a_score_of_an_old_trace_is_found_when_it_comes(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(1), generation(2, 500), generation(3, trace="trace-4")]
    langfuse.lists["observations"].append(generation(4))
    read()
    langfuse.lists["scores"] = [score(1, False, "BOOLEAN", 900), score(4, True, "BOOLEAN", 901)]
    assert read()["feedback"] == 2
    assert {(row.record_id, row.value.get("target")) for row in rows(Feedback)} == {
        ("obs-1", None), ("trace-4", "episode"),
    }  # fmt: skip
    assert read()["feedback"] == 0


def test_an_interrupted_reading_goes_on_at_its_page(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(n) for n in range(1, 10)]
    observations, _ = Langfuse().parts()
    entries = list(observations.read(None))
    position = next(entry.position for entry in entries if entry.position)
    assert position["next"] and position["rows"] == 3
    langfuse.asked.clear()
    rest = list(observations.read(position))
    assert [entry.where for entry in rest] == [entry.where for entry in entries[3:]] and observations.skipped == 3
    assert len(langfuse.asked) == 2
    assert rest[-1].position == entries[-1].position
    langfuse.paths.clear()  # a cursor of a version that is gone
    langfuse.paths["/api/public/observations"] = "observations"
    assert len(list(observations.read(position))) == 9


def test_older_servers_are_read_by_page(langfuse: type[Server]) -> None:
    langfuse.paths = {"/api/public/observations": "observations", "/api/public/v2/scores": "scores"}
    old = {"input": ASKED, "output": {"role": "assistant", "content": "cold"}, "model": "gpt-4.1"}
    langfuse.lists["observations"] = [generation(n, **old) for n in range(1, 8)]
    sort = {"subject": None, "traceId": "trace-1", "observationId": "obs-1"}
    langfuse.lists["scores"] = [
        score(1, 0, "CORRECTION", stringValue="4 degrees.", **sort),
        score(2, 1, "BOOLEAN", stringValue="True", **sort),
        score(3, 0, "CATEGORICAL", stringValue="too long", **sort),
    ]
    counts = read()
    assert (counts["interactions"], counts["feedback"]) == (7, 3)
    assert {row.kind: row.value for row in rows(Feedback)} == {
        "correction": {"role": "assistant", "content": "4 degrees."}, "thumb": {"value": 1, "metric": "feedback"},
        "label": {"value": "too long", "metric": "feedback"},
    }  # fmt: skip
    assert read()["feedback"] == 0


def test_scores_are_what_they_say(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(1, sessionId="s-1"), generation(2, sessionId="s-1")]
    session_ = {"kind": "session", "id": "s-1"}
    langfuse.lists["scores"] = [
        score(1, "4 degrees.", "CORRECTION", subject=of(1)),
        score(2, False, "BOOLEAN", name="helpful"),
        score(3, 0.25, "NUMERIC", name="relevance", source="EVAL", subject=of(1)),
        score(4, "good", "CATEGORICAL", name="quality", source="ANNOTATION", subject=of(1)),
        score(5, "off topic", "TEXT", name="remark", subject=of(1)),
        score(6, True, "BOOLEAN", name="solved", subject=session_),
        score(7, False, "BOOLEAN", name="correct", source="EVAL", subject=of(2)),
        score(8, 1, "NUMERIC", subject={"kind": "experiment", "id": "run-1"}),
    ]
    read()
    kept = {row.external_id[:7]: (row.record_id, row.kind, row.value) for row in rows(Feedback)}
    assert kept == {
        "score-1": ("obs-1", "correction", {"role": "assistant", "content": "4 degrees."}),
        "score-2": ("obs-2", "thumb", {"value": -1, "metric": "helpful"}),
        "score-3": ("obs-1", "rating", {"value": 0.25, "metric": "relevance"}),
        "score-4": ("obs-1", "thumb", {"value": 1, "metric": "quality"}),
        "score-5": ("obs-1", "label", {"value": "off topic", "metric": "remark"}),
        "score-6": ("s-1", "thumb", {"value": 1, "metric": "solved", "target": "episode"}),
        "score-7": ("obs-2", "rating", {"value": 0.0, "metric": "correct"}),
    }
    verdicts = [judge(case.answer, case.opinions) for case in cases_of("weather")]
    assert [verdict.rule for verdict in verdicts] == ["correction", "objection"]


def test_a_changed_score_is_kept_beside_what_it_was(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(1)]
    langfuse.lists["scores"] = [score(1, "4 degrees.", "CORRECTION")]
    read()
    langfuse.lists["scores"] = [score(1, "5 degrees.", "CORRECTION", updatedAt=stamp(5))]
    assert (read()["feedback"], read()["feedback"]) == (1, 0)
    (case,) = cases_of("weather")
    assert judge(case.answer, case.opinions).answer == {"role": "assistant", "content": "5 degrees."}


def test_a_quarantined_generation_holds_nothing_up_and_can_be_parsed_again(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(n) for n in range(1, 60)]
    langfuse.lists["observations"].append(generation(60, input=json.dumps({"city": "Oslo"})))
    langfuse.lists["observations"].append(generation(61, startTime="soon"))
    counts = read()
    assert (counts["interactions"], counts["quarantined"]) == (59, 2)
    kept = {row.position: row for row in rows(Quarantine)}
    assert "an object of 'city'" in kept["observation obs-60"].reason and "soon" in kept["observation obs-61"].reason
    langfuse.lists["observations"] = [one for one in langfuse.lists["observations"] if one["id"] != "obs-61"]
    with session(write=False) as db:
        before = len(db.scalars(select(Cursor)).all())
    langfuse.asked.clear()
    read()
    assert before == 1 and len(langfuse.asked) < 12 and len(rows(Quarantine)) == 2
    mended = {**json.loads(kept["observation obs-60"].raw), "input": "How cold?"}
    (parsed,) = Langfuse().parse(json.dumps(mended).encode(), START)
    assert parsed.row is not None and parsed.row.external_id == "obs-60"


def test_what_failed_is_an_error_and_what_goes_on_or_is_langfuses_own_is_no_row(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [
        generation(1, level="ERROR", statusMessage="overloaded", output=None),
        generation(2, endTime=None, output=None),
        generation(3, environment="langfuse-llm-as-a-judge"),
        generation(4, output=None),
    ]
    counts = read()
    assert (counts["interactions"], counts["quarantined"], counts["rows"]) == (1, 1, 2)
    assert rows(Interaction)[0].response["error"]["message"] == "overloaded"


def test_the_workload_is_what_is_said_else_what_is_told_else_the_name_of_the_trace(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [
        generation(1, metadata={"flywheel.workload": "classify"}), generation(2, tags=["a", "flywheel.workload:plan"]),
        generation(3), generation(4, traceName=None),
    ]  # fmt: skip
    assert read()["workloads"] == ["OpenAI-generation", "classify", "plan", "weather"]
    assert Langfuse(workload="told").parse(json.dumps(generation(3)).encode(), START).__next__().row.workload == "told"  # type: ignore[union-attr]


def test_the_api_is_waited_for_as_long_as_it_asks(langfuse: type[Server], waited: list[float]) -> None:
    langfuse.lists["observations"] = [generation(1)]
    langfuse.answers += [(429, {"Retry-After": "17"}), (503, {}), (429, {"Retry-After": "99999"})]
    assert read()["interactions"] == 1
    assert waited[0] == 17 and 2 <= waited[1] <= 3 and waited[2] == api.LONGEST_WAIT


def test_an_api_that_stays_away_is_one_line(langfuse: type[Server], waited: list[float]) -> None:
    langfuse.answers += [(502, {})] * api.ATTEMPTS
    with pytest.raises(SetupError, match=r"127\.0\.0\.1.* failed \(502 Bad Gateway\); check FLYWHEEL_LANGFUSE_HOST"):
        read()
    assert len(waited) == api.ATTEMPTS - 1


def test_keys_are_sent_to_no_other_address_than_theirs(langfuse: type[Server]) -> None:
    with pytest.raises(
        SetupError, match=r"belong to 'http://127.*'; for 'http://elsewhere' set FLYWHEEL_LANGFUSE_HOST"
    ):
        read("http://elsewhere")
    assert not langfuse.asked


def test_an_address_where_nobody_listens_is_one_line(waited: list[float], tmp_path: Path) -> None:
    keys = {"LANGFUSE_HOST": "http://127.0.0.1:9", "LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
    with living_in(tmp_path / "home", TEACHER="", **keys), pytest.raises(SetupError, match=r"failed .*refused"):
        read()


@pytest.mark.parametrize("keys", [{}, {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "wrong"}])
def test_keys_that_are_missing_or_wrong_are_named(langfuse: type[Server], keys: dict[str, str], tmp_path: Path) -> None:
    from infra.settings import settings

    host = settings().langfuse_host
    with living_in(tmp_path / "other", LANGFUSE_HOST=host, **keys), pytest.raises(SetupError) as caught:
        read(host)
    assert "FLYWHEEL_LANGFUSE_PUBLIC_KEY and FLYWHEEL_LANGFUSE_SECRET_KEY" in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_keys_are_in_no_cursor(langfuse: type[Server]) -> None:
    langfuse.lists["observations"] = [generation(1)]
    read()
    with session(write=False) as db:
        (cursor,) = db.scalars(select(Cursor))
    assert "pk" not in json.dumps(cursor.position) and cursor.source.startswith("langfuse:")


def blob(record: dict[str, Any]) -> dict[str, Any]:
    """As the export to blob storage says it."""
    import re

    named = {re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), key): value for key, value in record.items()}
    times = {key: value for key, value in named.items() if key in ("start_time", "end_time", "timestamp")}
    return {**named, **{k: datetime.fromisoformat(v).strftime("%Y-%m-%d %H:%M:%S.%f") for k, v in times.items()}}


SCORE = {**score(2, 0, "CORRECTION"), "subject": None, "stringValue": "4 degrees.", "observationId": "obs-1"}
CALLS = [generation(1), generation(2)]
TRACE = {
    "id": "trace-1", "timestamp": stamp(1), "name": "weather", "sessionId": None, "userId": "ann", "tags": [],
    "input": "in", "output": "out", "metadata": {}, "latency": 1.5,
    "observations": [generation(1, traceName=None), generation(9, type="SPAN")],
    "scores": [{**score(1, 0, "CORRECTION", stringValue="4 degrees."), "subject": None, "traceId": "trace-1"}],
}  # fmt: skip
Layout = Callable[[list[dict[str, Any]]], bytes]


@pytest.mark.parametrize(
    "layout",
    [
        lambda found: json.dumps(found).encode(),
        lambda found: json.dumps(found, indent=2).encode(),
        lambda found: b"\n".join(json.dumps(one).encode() for one in found),
        lambda found: gzip.compress(b"\n".join(json.dumps(one).encode() for one in found)),
        lambda found: json.dumps({"data": found, "meta": {"page": 1}}).encode(),
        lambda found: json.dumps({"data": found, "meta": {"page": 1}}, indent=1).encode(),
        lambda found: b"\n".join(json.dumps(blob(one)).encode() for one in found),
    ],
    ids=["array", "indented", "lines", "gzip", "page", "indented page", "blob storage"],
)
def test_every_layout_of_a_file_says_the_same(layout: Layout, home: Path, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_bytes(layout([*CALLS, SCORE, generation(3, type="EVENT")]))
    counts = read(str(tmp_path / "all.json"))
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (2, 1, 0)
    (opinion,), (first, _) = rows(Feedback), rows(Interaction)
    assert (opinion.record_id, opinion.value) == ("obs-1", {"role": "assistant", "content": "4 degrees."})
    assert (first.external_id, first.at, first.latency_ms) == ("obs-1", START + timedelta(hours=1), 1500)
    again = read(str(tmp_path / "all.json"))
    assert (again["duplicates"], again["interactions"], again["feedback"]) == (3, 0, 0)


def test_a_trace_holds_its_observations_and_scores(home: Path, tmp_path: Path) -> None:
    (tmp_path / "traces.json").write_text(json.dumps([TRACE]))
    counts = read(str(tmp_path))
    assert (counts["interactions"], counts["feedback"], counts["workloads"]) == (1, 1, ["weather"])
    assert (rows(Feedback)[0].record_id, rows(Interaction)[0].conversation) == ("obs-1", "trace-1")


def test_a_folder_of_an_export_is_read_whole_and_what_is_none_is_kept(home: Path, tmp_path: Path) -> None:
    lone = {**SCORE, "observationId": None, "traceId": "trace-1"}
    for name, found in {"observations_v2": CALLS, "scores": [SCORE, {**lone, "id": "score-3"}]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jsonl").write_text("".join(json.dumps(blob(one)) + "\n" for one in found))
    (tmp_path / "other.json").write_text('[{"a": 1}, 5]')
    counts = read(str(tmp_path))
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (2, 1, 3)
    reasons = sorted(row.reason for row in rows(Quarantine))
    assert reasons[0].startswith("a correction of trace 'trace-1'") and "neither an observation" in reasons[2]
