"""A rollout's state in a real database: what it decides, when, and that all who write to it agree."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select, update

from infra import registry
from infra.database.records import parse
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Rollout, RolloutCall, RolloutDecision, now
from infra.rollout import state
from infra.rollout.sequential import Arm
from infra.rollout.spec import RolloutSpec, Step
from infra.rollout.state import Seen, Standing
from infra.rollout.story import story
from infra.settings import SetupError, settings
from tests.conftest import living_in, new_database

CANARY = RolloutSpec((Step(0, requests=5), Step(0.2, requests=20), Step(0.6, requests=20)))


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, mlflow: str) -> Iterator[Path]:
    """A home with either database, and a teacher, on one MLflow for all."""
    other = {}
    if request.param == "postgresql":
        other["DATABASE"] = new_database(request.getfixturevalue("postgres"))
    with living_in(tmp_path / "home", MLFLOW=mlflow, **other) as home:
        yield home


@pytest.fixture
def register(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], tuple[str, str]]:
    """Register one more version of this test's workload: (workload, version)."""
    workload, made = request.node.name, iter(range(99))

    def one() -> tuple[str, str]:
        folder = tmp_path / f"artifact-{next(made)}"
        folder.mkdir()
        (folder / "model.gguf").write_text(folder.name + workload)
        return workload, registry.register(
            workload, folder, metrics={}, tags={}, parameters={}, run_name="test"
        )[0]  # fmt: skip

    return one


def under_way(workload: str) -> Standing:
    (standing,) = state.running(workload)
    return standing


class Traffic:
    """Calls of a rollout, each with a new id, and of a new conversation unless one is named."""

    def __init__(self, standing: Standing) -> None:
        self.standing, self.made = standing, 0

    def call(self, arm: Arm, failed: bool = False, ms: float = 100.0, conversation: str = "") -> Seen:
        self.made += 1
        name = f"{self.standing.id}-{self.made}"
        return Seen(name, self.standing.step, arm, conversation or name, now(), failed, ms)

    def see(self, *seen: Seen) -> Standing:
        self.standing = state.observe(self.standing.id, seen)
        return self.standing

    def both(self, times: int = 1, **student: Any) -> Standing:
        for _ in range(times):
            self.see(self.call("reference"), self.call("student", **student))
        return self.standing


def actions(workload: str) -> list[str]:
    told = story(workload)
    assert told is not None
    return [one["action"] for one in told["decisions"]]


def aliases(workload: str) -> dict[str, str]:
    from mlflow import MlflowClient

    found = MlflowClient(settings().mlflow_uri).get_registered_model(workload).aliases
    return {name: str(version) for name, version in found.items()}


def test_a_student_that_is_no_worse_goes_through_all_steps(place: Path, register: Any) -> None:
    workload, version = register()
    state.begin(workload, version, CANARY, "release", "passed")
    state.begin(workload, version, CANARY, "release", "passed")  # twice is once
    traffic = Traffic(under_way(workload))
    assert (traffic.standing.reference, traffic.standing.step) == ("teacher", 0)
    assert traffic.both(4).step == 0 and traffic.both().step == 1
    assert traffic.both(20).step == 2
    assert traffic.both(20).full
    told = story(workload)
    assert told is not None and [row["requests"] for row in told["arms"]] == [5, 5, 20, 20, 20, 20]
    assert [row["share"] for row in told["arms"][::2]] == ["shadow", "20%", "60%"]
    assert actions(workload) == ["begin", "step", "step", "full"]
    assert registry.champion_number(workload) is None, "the alias moves when a gateway is ready"
    assert state.end(traffic.standing.id, state.PROMOTED, "it serves").status == state.PROMOTED
    assert state.running(workload) == []


def test_without_steps_a_version_serves_at_once(place: Path, register: Any) -> None:
    workload, version = register()
    state.begin(workload, version, RolloutSpec(), "release", "passed")
    assert (registry.champion_number(workload), story(workload)) == (version, None)


@pytest.mark.parametrize(
    ("student", "measure"), [({"failed": True}, "errors"), ({"ms": 1000.0}, "latency")], ids=["errors", "latency"]
)
def test_a_breach_ends_it_with_the_reason_and_the_evidence(
    place: Path, register: Any, student: dict[str, Any], measure: str
) -> None:
    workload, version = register()
    state.begin(workload, version, replace(CANARY, steps=CANARY.steps[1:]), "release", "passed")
    traffic = Traffic(under_way(workload))
    assert traffic.both(19, **student).status == state.ROLLED_BACK
    decision = decisions(traffic.standing.id)[-1]
    assert decision.action == state.ROLLED_BACK and decision.reason.startswith(f"breach: {measure}: ")
    assert decision.evidence["tests"][measure]["p"] < 0.05 / 6
    before = decision.evidence["arms"]["student"]["requests"]
    assert traffic.see(traffic.call("student")).status == state.ROLLED_BACK
    assert decisions(traffic.standing.id)[-1].evidence["arms"]["student"]["requests"] == before < 19


def decisions(rollout_id: int) -> list[RolloutDecision]:
    with session(write=False) as db:
        mine = select(RolloutDecision).where(RolloutDecision.rollout_id == rollout_id).order_by(RolloutDecision.id)
        return list(db.scalars(mine))


def record(call: Seen, workload: str, said: str = "hello") -> None:
    request = {"messages": [{"role": "user", "content": "hi"}]}
    response = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
    keep({"id": call.call, "workload_id": workload, "request": request, "response": response})


def keep(entry: dict[str, Any]) -> None:
    with session() as db:
        store(db, [parse(entry, source="gateway", at=now())])


def test_objections_undo_a_student_and_a_correction_that_repeats_the_answer_does_not(
    place: Path, register: Any
) -> None:
    workload, version = register()
    state.begin(workload, version, RolloutSpec((Step(0.5, requests=500),)), "release", "passed")
    traffic, said = Traffic(under_way(workload)), []
    for n in range(40):
        mine, theirs = traffic.call("student"), traffic.call("reference")
        for call in (mine, theirs):
            record(call, workload)
        assert traffic.see(mine, theirs).status == state.RUNNING
        value = "hello" if n % 2 else "Goodbye"
        keep({"record_id": mine.call, "kind": "correction", "value": value})
        keep({"record_id": theirs.call, "kind": "thumb", "value": 1})
        said.append(value)
        if state.look(traffic.standing.id, None).status != state.RUNNING:
            break
    told = story(workload)
    assert told is not None and told["status"] == state.ROLLED_BACK
    assert told["decisions"][-1]["reason"].startswith("breach: opinions: ")
    counted = {row["answered by"]: (row["opinions"], row["objections"]) for row in told["arms"]}
    assert counted == {"student": (len(said), said.count("Goodbye")), "reference": (len(said), 0)}
    assert len(said) < 40


def test_silence_ends_it_and_so_do_opinions_that_do_not_come(place: Path, register: Any) -> None:
    workload, version = register()
    for spec, seen, reason in (
        (replace(CANARY, silence=100), 0, "0 of 5 requests"),
        (RolloutSpec((Step(0.5, requests=5, opinions=3),), silence=100), 5, "0 of 3 opinions"),
        (RolloutSpec((Step(0.5, requests=5, seconds=1e6),), silence=100), 5, "1000000 s have passed"),
    ):
        state.begin(workload, version, spec, "release", "passed")
        traffic = Traffic(under_way(workload))
        traffic.both(seen)
        assert state.look(traffic.standing.id, None).status == state.RUNNING
        long_ago(traffic.standing.id)
        assert state.look(traffic.standing.id, None).status == state.ROLLED_BACK
        last = decisions(traffic.standing.id)[-1].reason
        assert last.startswith("silence: ") and reason in last


def long_ago(rollout_id: int) -> None:
    """Let all that the rollout has seen be two minutes older."""
    before = now() - timedelta(seconds=120)
    with session() as db:
        row = db.get_one(Rollout, rollout_id)
        arms = {
            arm: {**counts, "last": counts["last"] and before.isoformat()} for arm, counts in row.tally["arms"].items()
        }
        values = {"step_began": before, "tally": {**row.tally, "arms": arms}}
        db.execute(update(Rollout).where(Rollout.id == rollout_id).values(values))


def test_another_version_that_serves_leaves_nothing_to_compare_with(place: Path, register: Any) -> None:
    workload, first = register()
    registry.promote(workload, first)
    _, second = register()
    _, third = register()
    state.begin(workload, second, CANARY, "release", "passed")
    standing = under_way(workload)
    assert (standing.reference, aliases(workload)["challenger"]) == (first, second)
    assert state.look(standing.id, first).status == state.RUNNING
    ended = state.look(standing.id, third)
    assert ended.status == state.ROLLED_BACK and f"version {third} serves now" in ended.reason


def test_one_version_is_under_way_at_a_time_and_the_way_out_is_said(place: Path, register: Any) -> None:
    workload, first = register()
    _, second = register()
    state.begin(workload, first, CANARY, "release", "passed")
    with pytest.raises(SetupError, match=f"version {first} .* is under way; .*--abort.*--version {second}"):
        state.begin(workload, second, CANARY, "release", "passed")
    state.end(under_way(workload).id, state.ABORTED, "by hand")
    state.begin(workload, second, CANARY, "release", "passed")
    assert under_way(workload).version == second


def test_what_is_brought_twice_counts_once(place: Path, register: Any) -> None:
    workload, version = register()
    state.begin(workload, version, CANARY, "release", "passed")
    traffic = Traffic(under_way(workload))
    call = traffic.call("student")
    traffic.see(call)
    traffic.see(call, call)
    with session(write=False) as db:
        assert len(db.scalars(select(RolloutCall).filter_by(rollout_id=traffic.standing.id)).all()) == 1
    told = story(workload)
    assert told is not None and told["arms"][0]["requests"] == 1


def test_gateways_that_write_at_once_lose_nothing_and_decide_once(place: Path, register: Any) -> None:
    workload, version = register()
    state.begin(workload, version, RolloutSpec((Step(0.5, requests=40), Step(0.9, requests=1000))), "release", "passed")
    standing, problems = under_way(workload), []

    def gateway(number: int) -> None:
        try:
            for n in range(10):
                arm: Arm = "student" if number % 2 else "reference"
                name = f"{standing.id}-{number}-{n}"
                state.observe(standing.id, [Seen(name, 0, arm, name, now(), False, 100.0)])
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=gateway, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert under_way(workload).step == 1 and actions(workload) == ["begin", "step"]
    told = story(workload)
    assert told is not None and [row["requests"] for row in told["arms"]] == [40, 40]


def test_conversations_that_are_doomed_are_counted_once(home: Path) -> None:
    """Each call of one in ten conversations fails, in both arms alike: far from an alarm, however they come."""
    from infra.rollout.tally import Tally

    spec = RolloutSpec((Step(0.3, requests=10_000),), errors=0.0)
    rng, alarmed, worlds = Random(5), 0, 150
    for _ in range(worlds):
        tally, at = Tally(), now()
        conversations = [("student" if rng.random() < 0.3 else "reference", rng.random() < 0.1) for _ in range(60)]
        before: dict[int, list[bool]] = {}
        for n in rng.choices(range(60), k=600):
            arm, doomed = conversations[n]
            tally.answered(spec, arm, at, doomed, 100.0, before.setdefault(n, []))  # type: ignore[arg-type]
            before[n].append(doomed)
        alarmed += tally.tests["errors"].p <= 0.05
    assert alarmed <= 0.05 * worlds


def test_weights_that_do_not_grow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0\.5, 0\.1\]; each has to be over the one before"):
        RolloutSpec((Step(0.5), Step(0.1)))
