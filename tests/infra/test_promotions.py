"""Who let which version serve, from the database alone; against both databases and a real registry."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra import promotions, registry
from infra.database.session import session
from infra.database.tables import Candidate, Dataset, Promotion, Student, Verdict
from infra.settings import settings
from tests.conftest import living_in


@pytest.fixture(scope="module")
def registry_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow for all of the file: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def house(database: str, registry_uri: str, tmp_path: Path) -> Any:
    with living_in(tmp_path / "home", TEACHER="", DATABASE=database, MLFLOW=registry_uri):
        yield


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> str:
    return f"w{abs(hash(request.node.nodeid)) % 10**9}"


@pytest.fixture
def versions(house: None, workload: str, tmp_path: Path) -> Callable[..., str]:
    """versions(gated=...): another registered version, with a verdict that lets it serve if it is gated."""

    def make(gated: bool = True) -> str:
        folder = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "model.gguf").write_text(folder.name)
        version, _ = registry.register(workload, folder, metrics={}, tags={}, parameters={}, run_name="x")
        if gated:
            with session() as db:
                known = f"{workload}-{version}"
                db.add(Dataset(id=known, workload=workload, path="", report={}, spec={}))
                db.flush()
                db.add(Student(id=known, dataset_id=known, path="", report={}, spec={}))
                db.flush()
                made = {"name": "x", "format": "gguf", "path": "", "artifact_hash": "", "size": 1, "spec": {}}
                db.add(Candidate(id=known, student_id=known, **made))
                db.flush()
                said = {"reference": "teacher", "outcome": "promote", "reasons": {}, "model_version": version}
                parents = {"workload": workload, "dataset_id": known, "candidate_id": known}
                db.add(Verdict(id=f"v{known}", spec={}, **parents, **said))
        return version

    return make


def story(workload: str) -> list[Promotion]:
    with session(write=False) as db:
        return list(db.scalars(select(Promotion).where(Promotion.workload == workload).order_by(Promotion.at)))


def by_hand(workload: str, version: str | None) -> None:
    """As a person does it, in MLflow."""
    import mlflow

    client = mlflow.MlflowClient(settings().mlflow_uri)
    if version is None:
        client.delete_registered_model_alias(workload, "champion")
    else:
        client.set_registered_model_alias(workload, "champion", version)


def mark_of(workload: str, version: str) -> str | None:
    import mlflow

    tags = mlflow.MlflowClient(settings().mlflow_uri).get_model_version(workload, version).tags
    return dict(tags).get("promoted_by")


def test_the_whole_story_of_the_alias_is_in_the_database(
    workload: str, versions: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, rough = versions(), versions(), versions(gated=False)
    watch = promotions.Watch()
    watch.look(registry.champions())
    promotions.promote(workload, one, "release", "passed", "run-1")
    promotions.promote(workload, one, "release", "passed", "run-1")
    promotions.promote(workload, two, "rollout", "all steps held")
    watch.look(registry.champions())
    assert promotions.rollback(workload, "asked for") == (one, two)
    watch.look(registry.champions())
    assert not caplog.records, "our own moves are no news"
    by_hand(workload, two)
    watch.look(registry.champions())
    assert not caplog.records, "it passed the gate once"
    by_hand(workload, rough)
    watch.look(registry.champions())
    watch.look(registry.champions())
    by_hand(workload, None)
    promotions.notice(workload, registry.champion_number(workload), "webhook")
    watch.look(registry.champions())

    told = [(p.version, p.replaced, p.by, p.noticed, p.verdict_id and p.verdict_id[0]) for p in story(workload)]
    assert told == [
        (one, None, "release", "flow", "v"),
        (two, one, "rollout", "flow", "v"),
        (one, two, "rollback", "flow", "v"),
        (two, one, "hand", "poll", "v"),
        (rough, two, "hand", "poll", None),
        (None, rough, "hand", "webhook", None),
    ]
    assert [p.flow_run_id for p in story(workload)][:2] == ["run-1", None]
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2 and "did not pass the gate" in warned[0] and "the teacher answers" in warned[1]
    assert (mark_of(workload, one), mark_of(workload, two)) == ("rollback", "hand")
    assert mark_of(workload, rough) == "hand, not gated"


def test_what_did_not_pass_and_came_by_steps_or_back_is_told_of_as_loudly(
    workload: str, versions: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    one, rough, two = versions(), versions(gated=False), versions()
    promotions.promote(workload, one, "release", "passed")
    assert not caplog.records
    promotions.promote(workload, rough, "rollout", "all steps held")
    assert "did not pass the gate: it serves because a person had it go through a rollout" in caplog.text
    assert mark_of(workload, rough) == "rollout, not gated"
    caplog.clear()
    promotions.promote(workload, two, "release", "passed")
    assert not caplog.records
    assert promotions.rollback(workload, "asked for") == (rough, two)
    assert "did not pass the gate: it serves because a rollback gave it its place back" in caplog.text
    assert promotions.warning(story(workload)[-1]) and mark_of(workload, rough) == "rollback, not gated"


def test_a_move_while_nobody_looked_is_noticed_by_who_comes_next(workload: str, versions: Callable[..., str]) -> None:
    one, two = versions(), versions()
    promotions.promote(workload, one, "release", "passed")
    by_hand(workload, two)
    promotions.Watch().look(registry.champions())
    by_hand(workload, None)
    promotions.Watch().look(registry.champions())
    assert [(p.version, p.by) for p in story(workload)] == [(one, "release"), (two, "hand"), (None, "hand")]


@pytest.mark.parametrize("moved", [False, True])
def test_a_release_that_died_is_told_as_what_it_came_to(
    workload: str, versions: Callable[..., str], moved: bool
) -> None:
    one, two = versions(), versions()
    promotions.promote(workload, one, "release", "passed")
    promotions._intend(workload, two, "release", "passed", "run-2")  # and here its process is killed, or
    if moved:
        registry.promote(workload, two)  # here
    promotions.notice(workload, registry.champion_number(workload), "poll")
    settled = [(p.version, p.by, p.flow_run_id) for p in story(workload) if p.at is not None]
    assert settled == [(one, "release", None), *([(two, "release", "run-2")] if moved else [])]
    promotions.promote(workload, two, "release", "passed", "run-2")
    assert [p.version for p in story(workload) if p.at is not None] == [one, two], "done again, it is told once"


def test_a_hand_that_is_quicker_than_a_release_does_not_change_whose_move_it_was(
    workload: str, versions: Callable[..., str]
) -> None:
    one, two, other = versions(), versions(), versions(gated=False)
    promotions.promote(workload, one, "release", "passed")
    promotions._intend(workload, two, "release", "passed", None)
    by_hand(workload, other)
    promotions.notice(workload, other, "poll")
    registry.promote(workload, two)
    promotions._settle(workload, two)
    assert [(p.version, p.by) for p in story(workload)] == [(one, "release"), (other, "hand"), (two, "release")]


def test_many_that_notice_it_at_once_tell_it_once(workload: str, versions: Callable[..., str]) -> None:
    version = versions(gated=False)
    by_hand(workload, version)
    promotions.serving()
    gate = threading.Barrier(4)

    def look() -> None:
        gate.wait()
        promotions.notice(workload, version, "poll")

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(p.version, p.by) for p in story(workload)] == [(version, "hand")]


def test_a_registry_from_before_this_was_written_down_is_not_taken_for_a_hand(
    workload: str, versions: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    registry.promote(workload, version := versions())
    row = promotions.notice(workload, version, "poll")
    assert row is not None and row.by == "release" and promotions.warning(row) is None and not caplog.records
