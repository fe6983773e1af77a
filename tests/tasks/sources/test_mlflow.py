"""Traces that MLflow's own client wrote, in a store of SQLite and behind a real `mlflow server`."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine
from infra.servers import Servers
from infra.settings import SetupError
from tasks.cases import gather
from tasks.ingest import ingest
from tasks.policy import judge
from tasks.sources import mlflow as source
from tasks.sources.mlflow import MLflow
from tests.infra.test_gateway import rows

ASKED = {"model": "m", "messages": [{"role": "user", "content": "How cold is Oslo?"}], "temperature": 0.2}
ANSWERED = {
    "id": "chatcmpl-1", "object": "chat.completion", "model": "m-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "4 degrees."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated store without traces: a copy of it starts in no time."""
    import mlflow

    with warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc  # of its own type hints
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(empty: Path, home: Path, tmp_path: Path) -> Iterator[str]:
    """A store that MLflow's functions write to, with an experiment `weather`."""
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty.read_bytes())
    with written_to(f"sqlite:///{file}", tmp_path):
        yield f"sqlite:///{file}"


@contextmanager
def written_to(uri: str, folder: Path) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    location = folder.joinpath("artifacts").as_uri() if uri.startswith("sqlite") else None
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("weather", artifact_location=location))
    try:
        yield
    finally:
        mlflow.flush_trace_async_logging()
        mlflow.set_tracking_uri(before)


def call(
    given: Any = ASKED, returned: Any = ANSWERED, kind: str = "CHAT_MODEL", session: str = "", **said: Any
) -> tuple[str, str]:
    """What `mlflow.openai.autolog` leaves of a call: ids of the trace and the span."""
    import mlflow

    with mlflow.start_span(name="Completions", span_type=kind) as span:
        span.set_inputs(given)
        span.set_attribute("mlflow.llm.model", "m-2026")
        span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13})
        for key, value in said.items():
            span.set_attribute(key.replace("__", "."), value)
        if session:
            mlflow.update_current_trace(metadata={"mlflow.trace.session": session, "mlflow.trace.user": "ann"})
        span.set_outputs(returned)
    return str(span.trace_id), str(span.span_id)


def said(trace: str, value: Any, name: str = "thumbs", by: str = "HUMAN", **more: Any) -> Any:
    import mlflow
    from mlflow.entities import AssessmentSource

    mlflow.flush_trace_async_logging()
    log = mlflow.log_expectation if more.pop("expected", False) else mlflow.log_feedback
    return log(trace_id=trace, name=name, value=value, source=AssessmentSource(by, "ann"), **more)


def read(uri: str, **options: Any) -> dict[str, Any]:
    import mlflow

    mlflow.flush_trace_async_logging()
    counts = ingest(MLflow(uri, **options))
    assert counts["rows"] == sum(counts[key] for key in ("interactions", "feedback", "duplicates", "quarantined"))
    return counts


def test_a_call_as_autologging_traces_it_is_an_interaction(uri: str) -> None:
    trace, span = call(session="s-1", mlflow__chat__tools=[TOOL])
    counts = read(uri)
    assert (counts["interactions"], counts["workloads"]) == (1, ["weather"])
    (row,) = rows(Interaction)
    assert (row.source, row.external_id, row.conversation, row.client) == ("mlflow", f"{trace}-{span}", "s-1", "ann")
    assert (row.model, row.prompt_tokens, row.completion_tokens) == ("m-2026", 9, 4)
    assert (row.request["messages"], row.request["temperature"]) == (ASKED["messages"], 0.2)
    assert row.request["tools"] == [TOOL]
    assert row.response["choices"] == ANSWERED["choices"]
    assert row.latency_ms is not None and row.latency_ms > 0
    assert abs((datetime.now(UTC) - row.at).total_seconds()) < 60


def test_reading_again_adds_nothing_and_finds_what_was_said_since(uri: str) -> None:
    first, _ = call()
    read(uri)
    call()
    counts = read(uri)
    assert (counts["interactions"], counts["duplicates"]) == (1, 1)
    said(first, False)
    counts = read(uri)
    assert (counts["interactions"], counts["feedback"], counts["duplicates"]) == (0, 1, 2)
    again = read(uri)
    assert (again["interactions"], again["feedback"], again["duplicates"]) == (0, 0, 3)


def test_only_the_days_of_the_lookback_are_read_again(uri: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(uri)
    day = source.DAY_MS * 1_000_000
    for age in (30, 20, 3, 0):
        start = 1_790_000_000_000_000_000 - age * day
        span = client.start_trace("call", span_type="LLM", inputs=f"question {age}", start_time_ns=start)
        client.end_trace(span.trace_id, outputs="answer", end_time_ns=start + 1_000_000)
        last = span.trace_id
        said(last, True)
    assert read(uri)["rows"] == 8
    with session(write=False) as db:
        position = dict(db.scalars(select(Cursor)).one().position)
    (part,) = MLflow(uri, lookback=7).parts()
    assert len(list(part.read(position))) == 4 and part.skipped == 4
    (part,) = MLflow(uri, lookback=25).parts()
    assert len(list(part.read(position))) == 6 and part.skipped == 2
    again = read(uri)
    assert (again["rows"], again["duplicates"]) == (8, 8)


def test_opinions_reach_the_call_they_are_about(uri: str) -> None:
    trace, span = call()
    said(trace, True)
    said(trace, "no", name="helpful", span_id=span)
    said(trace, "4.5 degrees.", name="expected_response", expected=True)
    said(trace, 0.3, name="relevance", by="LLM_JUDGE")
    said(trace, "yes", name="correctness", by="LLM_JUDGE")
    said(trace, "off topic", name="remark")
    read(uri)
    found = rows(Feedback)
    assert {row.record_id for row in found} == {f"{trace}-{span}"}
    assert sorted((row.kind, row.value) for row in found if row.kind != "correction") == sorted(
        [
            ("thumb", {"value": 1, "metric": "thumbs"}), ("thumb", {"value": -1, "metric": "helpful"}),
            ("rating", {"value": 0.3, "metric": "relevance"}), ("rating", {"value": 1.0, "metric": "correctness"}),
            ("label", {"value": "off topic", "metric": "remark"}),
        ],
        key=repr,
    ) or len(found) == 6  # fmt: skip
    with session(write=False) as db:
        (case,) = gather(db, "weather", 10)
    verdict = judge(case.answer, case.opinions)
    assert (verdict.rule, verdict.answer) == ("correction", {"role": "assistant", "content": "4.5 degrees."})


def test_a_judge_decides_nothing_and_yes_to_a_fault_is_a_thumb_down(uri: str) -> None:
    trace, _ = call()
    said(trace, False, name="correctness", by="LLM_JUDGE")
    said(trace, False, name="is_json", by="CODE")
    said(trace, "Something else.", name="expected_response", by="LLM_JUDGE", expected=True)
    read(uri)
    with session(write=False) as db:
        (case,) = gather(db, "weather", 10)
        assert judge(case.answer, case.opinions).rule == "nothing" and len(case.opinions) == 3
    said(trace, True, name="hallucination")
    read(uri)
    with session(write=False) as db:
        (case,) = gather(db, "weather", 10)
        assert judge(case.answer, case.opinions).rule == "objection"


def test_overridden_deleted_and_failed_assessments_are_no_rows_and_changed_ones_are_new(uri: str) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource, Expectation

    trace, _ = call()
    wrong, gone = said(trace, False), said(trace, False, name="gone")
    mlflow.override_feedback(
        trace_id=trace, assessment_id=wrong.assessment_id, value=True, source=AssessmentSource("HUMAN", "bob")
    )
    mlflow.delete_assessment(trace_id=trace, assessment_id=gone.assessment_id)
    mlflow.log_feedback(trace_id=trace, name="judge", error="timeout")
    right = said(trace, "4", name="ground truth", expected=True)
    read(uri)
    assert [(row.kind, row.value) for row in rows(Feedback)] == [
        ("thumb", {"value": 1, "metric": "thumbs"}), ("correction", {"role": "assistant", "content": "4"}),
    ]  # fmt: skip
    mlflow.update_assessment(trace, right.assessment_id, Expectation(name="ground truth", value="5"))
    assert (read(uri)["feedback"], read(uri)["feedback"]) == (1, 0)
    with session(write=False) as db:
        (case,) = gather(db, "weather", 10)
        verdict = judge(case.answer, case.opinions)
    assert verdict.answer == {"role": "assistant", "content": "5"}


def test_a_trace_of_several_calls_is_several_interactions_of_one_conversation(uri: str) -> None:
    import mlflow

    with mlflow.start_span("agent", span_type="AGENT") as root:
        root.set_inputs({"question": "How cold is Oslo?"})
        with mlflow.start_span("lookup", span_type="TOOL"):
            pass
        _, first = call({"messages": [{"role": "user", "content": "plan"}]})
        with mlflow.start_span("ChatOpenAI", span_type="CHAT_MODEL") as outer:  # a wrapper that is traced too
            outer.set_inputs([[{"type": "human", "content": "How cold is Oslo?"}]])
            trace, second = call()
        root.set_outputs("4 degrees.")
    said(trace, True)
    said(trace, False, span_id=outer.span_id)
    said(trace, "5", name="expected_answer", expected=True)
    counts = read(uri)
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (2, 2, 1)
    assert {row.external_id: row.conversation for row in rows(Interaction)} == {
        f"{trace}-{first}": trace, f"{trace}-{second}": trace,
    }  # fmt: skip
    opinions = {row.record_id: row.value for row in rows(Feedback)}
    assert opinions[trace] == {"value": 1, "metric": "thumbs", "target": "episode"}
    assert opinions[f"{trace}-{second}"] == {"value": -1, "metric": "thumbs"}
    assert "log it with the span_id" in counts["problems"][0]


def test_what_is_said_of_a_session_is_about_the_conversation(uri: str) -> None:
    trace, _ = call(session="s-1")
    said(trace, False, name="resolved", metadata={"mlflow.trace.session": "s-1"})
    read(uri)
    (opinion,) = rows(Feedback)
    assert (opinion.record_id, opinion.value["target"]) == ("s-1", "episode")


def test_a_failed_call_is_an_error(uri: str) -> None:
    import mlflow

    with pytest.raises(TimeoutError), mlflow.start_span("Completions", span_type="CHAT_MODEL") as span:
        span.set_inputs(ASKED)
        raise TimeoutError("no answer in 30 s")
    read(uri)
    (row,) = rows(Interaction)
    assert row.response["error"] == {"message": "TimeoutError: no answer in 30 s", "type": "TimeoutError"}


def test_a_plain_function_counts_where_it_was_clearly_asked_and_answered(uri: str) -> None:
    import mlflow

    @mlflow.trace
    def answer(question: str) -> str:
        return f"{question} Four."

    @mlflow.trace
    def chat(messages: list[dict[str, str]]) -> dict[str, str]:
        return {"role": "assistant", "content": "Four."}

    @mlflow.trace
    def add(one: int, other: int) -> int:
        return one + other

    @mlflow.trace(span_type="RETRIEVER")
    def search(query: str) -> list[str]:
        return [query]

    answer("How cold?")
    chat(ASKED["messages"])  # type: ignore[arg-type]
    add(2, 2)
    search("Oslo")
    counts = read(uri)
    assert (counts["interactions"], counts["quarantined"]) == (2, 1)
    assert "was given 'one', 'other', neither messages nor one text" in counts["problems"][0]
    assert [row.request["messages"][0]["content"] for row in rows(Interaction)] == ["How cold?", "How cold is Oslo?"]
    assert rows(Interaction)[0].response["choices"][0]["message"]["content"] == "How cold? Four."


def test_a_quarantined_call_holds_nothing_up_and_can_be_parsed_again(uri: str) -> None:
    trace, span = call({"city": "Oslo"})
    call()
    counts = read(uri)
    assert (counts["interactions"], counts["quarantined"]) == (1, 1)
    (kept,) = rows(Quarantine)
    assert kept.position == f"trace {trace}" and "neither messages nor text" in kept.reason
    said(trace, True)
    again = read(uri)
    assert (again["interactions"], again["duplicates"], again["quarantined"], again["feedback"]) == (0, 1, 1, 1)
    assert len(rows(Quarantine)) == 1
    mended = json.loads(kept.raw)
    mended["data"]["spans"][0]["attributes"]["mlflow.spanInputs"] = json.dumps(ASKED)
    (parsed,) = MLflow().parse(json.dumps(mended).encode(), datetime.now(UTC))
    assert parsed.row is not None and parsed.row.external_id == f"{trace}-{span}"


def test_the_workload_is_what_the_trace_says_else_what_is_told_else_the_experiment(uri: str) -> None:
    import mlflow

    with mlflow.start_span("agent"):
        mlflow.update_current_trace(tags={"flywheel.workload": "tagged"})
        call()
        call(flywheel__workload="classify")
    call()
    assert read(uri, workload="told")["workloads"] == ["classify", "tagged", "told"]


def test_traces_of_scorers_and_those_still_going_on_are_no_rows(uri: str) -> None:
    import mlflow

    trace, _ = call()
    call()
    mlflow.flush_trace_async_logging()
    mlflow.MlflowClient(uri).set_trace_tag(trace, "mlflow.trace.sourceScorer", "judge")
    span = mlflow.start_span_no_context("Completions", span_type="LLM", inputs="How cold?")
    assert read(uri)["rows"] == 1
    span.end(outputs="4 degrees.")
    assert read(uri)["interactions"] == 1


def test_experiments_are_parts_by_name_or_id(uri: str) -> None:
    import mlflow

    call()
    mlflow.set_experiment("other")
    call()
    mlflow.flush_trace_async_logging()
    assert [part.label for part in MLflow(uri).parts()] == [f"experiment {n!r} of {uri}" for n in ("other", "weather")]
    number = mlflow.get_experiment_by_name("other").experiment_id
    assert read(uri, experiments=("weather", number))["workloads"] == ["other", "weather"]
    with pytest.raises(SetupError, match=r"experiment 'wether' does not exist .* known are 'other', 'weather'"):
        MLflow(uri, experiments=("wether",)).parts()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("http://127.0.0.1:9", "cannot be reached"), ("sqlite:////nowhere/at/all.db", "failed")],
)
def test_a_server_that_is_away_is_one_line(uri: str, reason: str, home: Path) -> None:
    with pytest.raises(SetupError, match=reason) as caught:
        MLflow(uri).parts()
    assert uri in str(caught.value) and "the source's `uri`" in str(caught.value)


def test_a_store_without_traces_says_so(uri: str) -> None:
    with pytest.raises(SetupError, match="no experiment with traces"):
        MLflow(uri).parts()


def test_every_page_of_a_real_server_is_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(source, "PAGE", 10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with Servers(tmp_path / "logs") as servers:
        servers.start(
            "mlflow",
            [
                "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}",
                "--default-artifact-root", (tmp_path / "artifacts").as_uri(),
            ],
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
        servers.wait_for("mlflow", f"{address}/health")
        with written_to(address, tmp_path):
            for number in range(35):
                trace, _ = call({"messages": [{"role": "user", "content": f"question {number}"}]})
            said(trace, False)
            counts = read(address)
            assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (35, 1, 0)
            assert len({row.request["messages"][0]["content"] for row in rows(Interaction)}) == 35
            again = read(address)
            assert (again["interactions"], again["feedback"], again["duplicates"]) == (0, 0, 36)
