"""Traces that MLflow's own client wrote, in a store of SQLite and behind a real `mlflow server`."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra.database.policy import judge
from infra.database.session import session
from infra.database.tables import Cursor, Feedback, Interaction, Quarantine
from infra.servers import Servers
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources import mlflow as source
from tasks.sources.mlflow import MLflow
from tests.infra.gateway.test_app import rows
from tests.mlflow_server import free_port
from tests.tasks.cases_of import cases_of

ASKED = {"model": "m", "messages": [{"role": "user", "content": "How cold is Oslo?"}], "temperature": 0.2}
ANSWERED = {
    "id": "chatcmpl-1", "object": "chat.completion", "model": "m-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "4 degrees."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for the file, which takes seconds to make; each test has an experiment of its own."""
    import mlflow

    with warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc  # of its own type hints
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(before)


@pytest.fixture
def weather(store: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest) -> MLflow:
    """An experiment that MLflow's functions write to, as a source."""
    return experiment(request.node.name, store, tmp_path)


def experiment(name: str, uri: str, folder: Path) -> MLflow:
    import mlflow

    location = None if uri.startswith("http") else folder.joinpath("artifacts").as_uri()
    mlflow.set_experiment(experiment_id=mlflow.create_experiment(name, artifact_location=location))
    return MLflow(uri, (name,))


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

    log = mlflow.log_expectation if more.pop("expected", False) else mlflow.log_feedback
    return log(trace_id=trace, name=name, value=value, source=AssessmentSource(by, "ann"), **more)


def read(spec: MLflow, **options: Any) -> dict[str, Any]:
    counts = ingest(replace(spec, **options))
    assert counts["rows"] == sum(counts[key] for key in ("interactions", "feedback", "duplicates", "quarantined"))
    return counts


def test_a_call_as_autologging_traces_it_is_an_interaction(weather: MLflow) -> None:
    trace, span = call(session="s-1", mlflow__chat__tools=[TOOL])
    counts = read(weather)
    assert (counts["interactions"], counts["workloads"]) == (1, list(weather.experiments))
    (row,) = rows(Interaction)
    assert (row.source, row.external_id, row.conversation, row.client) == ("mlflow", f"{trace}-{span}", "s-1", "ann")
    assert (row.model, row.prompt_tokens, row.completion_tokens) == ("m-2026", 9, 4)
    assert (row.request["messages"], row.request["temperature"]) == (ASKED["messages"], 0.2)
    assert row.request["tools"] == [TOOL]
    assert row.response["choices"] == ANSWERED["choices"]
    assert row.latency_ms is not None and row.latency_ms > 0
    assert abs((datetime.now(UTC) - row.at).total_seconds()) < 60


def test_reading_again_adds_nothing_and_finds_what_was_said_since(weather: MLflow) -> None:
    first, _ = call()
    read(weather)
    call()
    counts = read(weather)
    assert (counts["interactions"], counts["duplicates"]) == (1, 1)
    said(first, False)
    counts = read(weather)
    assert (counts["interactions"], counts["feedback"], counts["duplicates"]) == (0, 1, 2)
    again = read(weather)
    assert (again["interactions"], again["feedback"], again["duplicates"]) == (0, 0, 3)


def test_only_the_days_of_the_lookback_are_read_again(weather: MLflow) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    day = source.DAY_MS * 1_000_000
    for age in (30, 20, 3, 0):
        start = 1_790_000_000_000_000_000 - age * day
        span = client.start_trace("call", span_type="LLM", inputs=f"question {age}", start_time_ns=start)
        client.end_trace(span.trace_id, outputs="answer", end_time_ns=start + 1_000_000)
        last = span.trace_id
        said(last, True)
    assert read(weather)["rows"] == 8
    with session(write=False) as db:
        position = dict(db.scalars(select(Cursor)).one().position)
    (part,) = weather.parts()
    assert len(list(part.read(position))) == 4 and part.skipped == 4
    (part,) = replace(weather, lookback=25).parts()
    assert len(list(part.read(position))) == 6 and part.skipped == 2
    again = read(weather)
    assert (again["rows"], again["duplicates"]) == (8, 8)


def test_opinions_reach_the_call_they_are_about(weather: MLflow) -> None:
    trace, span = call()
    said(trace, True)
    said(trace, "no", name="helpful", span_id=span)
    said(trace, "4.5 degrees.", name="expected_response", expected=True)
    said(trace, 0.3, name="relevance", by="LLM_JUDGE")
    said(trace, "yes", name="correctness", by="LLM_JUDGE")
    said(trace, "off topic", name="remark")
    read(weather)
    found = rows(Feedback)
    assert {row.record_id for row in found} == {f"{trace}-{span}"}
    kept = {row.value["metric"]: (row.kind, row.value["value"]) for row in found if row.kind != "correction"}
    assert kept == {
        "thumbs": ("thumb", 1), "helpful": ("thumb", -1), "relevance": ("rating", 0.3), "correctness": ("rating", 1.0),
        "remark": ("label", "off topic"),
    }  # fmt: skip
    (case,) = cases_of(weather.experiments[0])
    verdict = judge(case.answer, case.opinions)
    assert (verdict.rule, verdict.answer) == ("correction", {"role": "assistant", "content": "4.5 degrees."})


def test_a_judge_decides_nothing_and_yes_to_a_fault_is_a_thumb_down(weather: MLflow) -> None:
    trace, _ = call()
    said(trace, False, name="correctness", by="LLM_JUDGE")
    said(trace, False, name="is_json", by="CODE")
    said(trace, "Something else.", name="expected_response", by="LLM_JUDGE", expected=True)
    read(weather)
    (case,) = cases_of(weather.experiments[0])
    assert judge(case.answer, case.opinions).rule == "nothing" and len(case.opinions) == 3
    said(trace, True, name="hallucination")
    read(weather)
    (case,) = cases_of(weather.experiments[0])
    assert judge(case.answer, case.opinions).rule == "objection"


def test_overridden_deleted_and_failed_assessments_are_no_rows_and_changed_ones_are_new(weather: MLflow) -> None:
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
    read(weather)
    assert sorted(((row.kind, row.value) for row in rows(Feedback)), key=repr) == [
        ("correction", {"role": "assistant", "content": "4"}), ("thumb", {"value": 1, "metric": "thumbs"}),
    ]  # fmt: skip
    mlflow.update_assessment(trace, right.assessment_id, Expectation(name="ground truth", value="5"))
    assert (read(weather)["feedback"], read(weather)["feedback"]) == (1, 0)
    (case,) = cases_of(weather.experiments[0])
    verdict = judge(case.answer, case.opinions)
    assert verdict.answer == {"role": "assistant", "content": "5"}


def test_a_trace_of_several_calls_is_several_interactions_of_one_conversation(weather: MLflow) -> None:
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
    counts = read(weather)
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (2, 2, 1)
    assert {row.external_id: row.conversation for row in rows(Interaction)} == {
        f"{trace}-{first}": trace, f"{trace}-{second}": trace,
    }  # fmt: skip
    opinions = {row.record_id: row.value for row in rows(Feedback)}
    assert opinions[trace] == {"value": 1, "metric": "thumbs", "target": "episode"}
    assert opinions[f"{trace}-{second}"] == {"value": -1, "metric": "thumbs"}
    assert "log it with the span_id" in counts["problems"][0]


def test_what_is_said_of_a_session_is_about_the_conversation(weather: MLflow) -> None:
    trace, _ = call(session="s-1")
    said(trace, False, name="resolved", metadata={"mlflow.trace.session": "s-1"})
    read(weather)
    (opinion,) = rows(Feedback)
    assert (opinion.record_id, opinion.value["target"]) == ("s-1", "episode")


def test_a_failed_call_is_an_error(weather: MLflow) -> None:
    import mlflow

    with pytest.raises(TimeoutError), mlflow.start_span("Completions", span_type="CHAT_MODEL") as span:
        span.set_inputs(ASKED)
        raise TimeoutError("no answer in 30 s")
    read(weather)
    (row,) = rows(Interaction)
    assert row.response["error"] == {"message": "TimeoutError: no answer in 30 s", "type": "TimeoutError"}


def test_a_plain_function_counts_where_it_was_clearly_asked_and_answered(weather: MLflow) -> None:
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
    counts = read(weather)
    assert (counts["interactions"], counts["quarantined"]) == (2, 1)
    assert "was given 'one', 'other', neither messages nor one text" in counts["problems"][0]
    answers = {
        row.request["messages"][0]["content"]: row.response["choices"][0]["message"]["content"]
        for row in rows(Interaction)
    }
    assert answers == {"How cold?": "How cold? Four.", "How cold is Oslo?": "Four."}


def test_a_quarantined_call_holds_nothing_up_and_can_be_parsed_again(weather: MLflow) -> None:
    trace, span = call({"city": "Oslo"})
    call()
    counts = read(weather)
    assert (counts["interactions"], counts["quarantined"]) == (1, 1)
    (kept,) = rows(Quarantine)
    assert kept.position == f"trace {trace}" and "neither messages nor text" in kept.reason
    said(trace, True)
    again = read(weather)
    assert (again["interactions"], again["duplicates"], again["quarantined"], again["feedback"]) == (0, 1, 1, 1)
    assert len(rows(Quarantine)) == 1
    mended = json.loads(kept.raw)
    mended["data"]["spans"][0]["attributes"]["mlflow.spanInputs"] = json.dumps(ASKED)
    (parsed,) = MLflow().parse(json.dumps(mended).encode(), datetime.now(UTC))
    assert parsed.row is not None and parsed.row.external_id == f"{trace}-{span}"


def test_what_no_database_stores_costs_its_own_record(weather: MLflow) -> None:
    call({**ASKED, "temperature": float("nan")})
    trace, _ = call()
    said(trace, float("nan"), name="relevance", by="LLM_JUDGE")
    said(trace, True)
    counts = read(weather)
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (1, 1, 1)
    assert "NaN is no number" in counts["problems"][0]


def test_the_workload_is_what_the_trace_says_else_what_is_told_else_the_experiment(weather: MLflow) -> None:
    import mlflow

    with mlflow.start_span("agent"):
        mlflow.update_current_trace(tags={"flywheel.workload": "tagged"})
        call()
        call(flywheel__workload="classify")
    call()
    assert read(weather, workload="told")["workloads"] == ["classify", "tagged", "told"]


def test_traces_of_scorers_and_those_still_going_on_are_no_rows(weather: MLflow) -> None:
    import mlflow

    trace, _ = call()
    call()
    mlflow.MlflowClient().set_trace_tag(trace, "mlflow.trace.sourceScorer", "judge")
    span = mlflow.start_span_no_context("Completions", span_type="LLM", inputs="How cold?")
    assert read(weather)["rows"] == 1
    span.end(outputs="4 degrees.")
    assert read(weather)["interactions"] == 1


def test_experiments_are_parts_by_name_or_id(weather: MLflow, tmp_path: Path) -> None:
    import mlflow

    call()
    other = experiment("other", weather.uri, tmp_path)
    call()
    experiment("empty", weather.uri, tmp_path)
    everything = [part.label for part in MLflow(weather.uri).parts()]
    assert f"experiment 'other' of {weather.uri}" in everything and not any("'empty'" in one for one in everything)
    number = mlflow.get_experiment_by_name("other").experiment_id
    found = read(weather, experiments=(*weather.experiments, number))["workloads"]
    assert found == sorted([*weather.experiments, *other.experiments])
    with pytest.raises(SetupError, match=r"experiment 'othr' does not exist .* known are .*'other'"):
        MLflow(weather.uri, ("othr",)).parts()


def test_a_server_that_is_away_is_one_line(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot be reached .*; start it, or check the source's `uri`"):
        MLflow("http://127.0.0.1:9").parts()
    missing = tmp_path / "mlflow.db"
    with pytest.raises(SetupError, match="does not exist"):
        MLflow(f"sqlite:///{missing}").parts()
    assert not missing.exists()


def test_without_a_uri_it_is_the_store_of_the_settings(home: Path) -> None:
    with pytest.raises(SetupError, match=r"no MLflow store at .*home/mlflow.db"):
        MLflow().parts()


def test_every_page_of_a_real_server_is_read(
    store: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr(source, "PAGE", 10)
    port = free_port()
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
        mlflow.set_tracking_uri(address)
        try:
            weather = experiment("weather", address, tmp_path)
            for number in range(35):
                trace, _ = call({"messages": [{"role": "user", "content": f"question {number}"}]})
            said(trace, False)
            counts = read(weather)
            assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (35, 1, 0)
            assert len({row.request["messages"][0]["content"] for row in rows(Interaction)}) == 35
            again = read(weather)
            assert (again["interactions"], again["feedback"], again["duplicates"]) == (0, 0, 36)
        finally:
            mlflow.set_tracking_uri(store)
