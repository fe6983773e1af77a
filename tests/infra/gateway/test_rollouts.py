"""Rollouts in a gateway on a real port, with a real student and a teacher behind an endpoint: who answers, and when."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from infra import registry
from infra.database.session import session
from infra.database.tables import Interaction, RolloutCall
from infra.gateway.app import create_app
from infra.rollout import state
from infra.rollout.spec import RolloutSpec, Step
from infra.rollout.story import story
from tests.conftest import answering, cluster, living_in, new_database
from tests.infra.engines.test_llamacpp import fatal
from tests.infra.engines.test_openai import VLLM
from tests.infra.gateway.conftest import ANSWER, Teacher, eventually
from tests.infra.gateway.test_app import ASK, listening, rows
from tests.models import PREFIX

SHADOW = RolloutSpec((Step(0, requests=1000),))
HALF = RolloutSpec((Step(0.5, requests=1000),))


@pytest.fixture
def house(open_house: Any, teacher: type[Teacher]) -> Iterator[str]:
    with open_house(TEACHER=teacher.url, THREADS="1") as url:
        yield url


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def register(artifact: Callable[..., Path], workload: str) -> Callable[..., str]:
    def made(**manifest: Any) -> str:
        folder = artifact(workload=workload, **manifest)
        return registry.register(workload, folder, metrics={}, tags={}, parameters={}, run_name="test")[0]

    return made


def ask(url: str, workload: str, conversation: str, **more: Any) -> dict[str, Any]:
    headers = {"x-flywheel-conversation": conversation}
    answer = httpx.post(
        f"{url}/v1/chat/completions", json={**ASK, "model": workload, **more}, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def taken_up(url: str, workload: str) -> dict[str, Any]:
    return eventually(lambda: httpx.get(f"{url}/v1/models").json()["rollouts"].get(workload), 60)


def ended(workload: str) -> dict[str, Any]:
    def over() -> Any:
        told = story(workload)
        return told if told and told["ended"] else None

    return dict(eventually(over, 30))


def calls(workload: str) -> list[RolloutCall]:
    with session(write=False) as db:
        mine = select(Interaction.external_id).where(Interaction.workload == workload)
        return list(db.scalars(select(RolloutCall).where(RolloutCall.id.in_(mine)).order_by(RolloutCall.at)))


def interactions(workload: str) -> list[Interaction]:
    return [row for row in rows(Interaction) if row.workload == workload]


def test_in_shadow_the_student_is_asked_too_and_only_the_log_hears_it(
    house: str, workload: str, register: Callable[..., str]
) -> None:
    state.begin(workload, register(), SHADOW, "release", "passed")
    taken_up(house, workload)
    for n in range(6):
        answer = ask(house, workload, f"c{n}")
        assert answer["choices"][0]["message"] == ANSWER
        eventually(lambda n=n: len([c for c in calls(workload) if c.arm == "student"]) > n)
    ask(house, workload, "c7", stream_options=None)
    kept = interactions(workload)
    assert len(kept) == 7 and not any(registry.is_student(row.model) for row in kept), "a shadow answer is no traffic"
    shadows = [call for call in calls(workload) if call.arm == "student"]
    assert all(set(call.answer or {}) == {"message"} and not call.failed for call in shadows)
    assert all(call.answer is None for call in calls(workload) if call.arm == "reference")


def test_a_conversation_stays_with_whoever_answered_it_first(
    house: str, workload: str, register: Callable[..., str]
) -> None:
    version = register()
    state.begin(workload, version, HALF, "release", "passed")
    taken_up(house, workload)
    student = registry.served_name(workload, version)
    answered = [{ask(house, workload, f"c{n}").get("model") == student for _ in range(3)} for n in range(16)]
    assert all(len(who) == 1 for who in answered) and {who.pop() for who in answered} == {True, False}
    by_model = {row.external_id: row.model == student for row in interactions(workload)}
    eventually(lambda: len(calls(workload)) == 48)
    assert {call.id: call.arm == "student" for call in calls(workload)} == by_model


def test_a_student_that_breaks_costs_nobody_an_answer_and_is_undone(
    house: str, workload: str, register: Callable[..., str]
) -> None:
    state.begin(workload, register(), HALF, "release", "passed")
    taken_up(house, workload)
    asked = 0
    while state.running(workload):
        asked += 1
        assert asked < 60, "it goes on"
        assert ask(house, workload, f"c{asked}", max_tokens="many")["choices"][0]["message"] == ANSWER
    told = ended(workload)
    assert told["status"] == state.ROLLED_BACK and told["decisions"][-1]["reason"].startswith("breach: errors")
    errors = [row for row in interactions(workload) if "error" in row.response]
    assert len(errors) == told["arms"][-1]["failed"] and all(row.external_id.endswith("-challenger") for row in errors)
    assert ask(house, workload, "after", max_tokens="many")["choices"][0]["message"] == ANSWER
    assert len(interactions(workload)) == asked + len(errors) + 1, "each customer's call is recorded once"


class Hanging(VLLM):
    """A server that loads a student and answers once, and then never in time."""

    def do_POST(self) -> None:
        if self.path == "/v1/completions":
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            time.sleep(0 if body["max_tokens"] == 1 else 2)
            self.reply({"choices": [{"text": "late", "finish_reason": "stop"}]})
            return
        super().do_POST()


def test_a_student_that_hangs_is_answered_for_in_time_and_undone(
    open_house: Any, teacher: type[Teacher], workload: str, bare: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(bare, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "adapter_config.json").write_text("{}")
    (folder / "flywheel.json").write_text(json.dumps({"workload": workload, "prefix": PREFIX.to_json()}))
    VLLM.told.clear(), VLLM.adapters.clear()
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Hanging)) as server:
        models = {"SERVER": f"{server}/v1", "SERVER_FOLDER": str(tmp_path / "models")}
        with open_house(TEACHER=teacher.url, THREADS="1", **models) as url:
            version = registry.register(workload, folder, metrics={}, tags={}, parameters={}, run_name="test")[0]
            state.begin(workload, version, replace(HALF, timeout=0.3), "release", "passed")
            taken_up(url, workload)
            asked = 0
            while state.running(workload):
                asked += 1
                assert asked < 80 and ask(url, workload, f"c{asked}")["choices"][0]["message"] == ANSWER
            assert ended(workload)["decisions"][-1]["reason"].startswith("breach: errors")
            eventually(lambda: not VLLM.adapters)  # when the last late answer has come


def test_what_holds_serves_all_and_is_not_loaded_again(house: str, workload: str, register: Callable[..., str]) -> None:
    first = register(candidate_id="one")
    registry.promote(workload, first)
    eventually(lambda: workload in served(house), 60)
    second = register(candidate_id="two")
    spec = RolloutSpec((Step(0, requests=2), Step(0.5, requests=3)), slower=1e6)
    state.begin(workload, second, spec, "release", "passed")
    assert taken_up(house, workload)["version"] == second
    asked = 0
    while state.running(workload):
        asked += 1
        assert asked < 200
        assert registry.is_student(ask(house, workload, f"c{asked}")["model"])
    assert ended(workload)["status"] == state.PROMOTED
    assert registry.champion_number(workload) == second
    eventually(lambda: served(house)[workload] == second)  # it is in the database a moment before
    assert ask(house, workload, "after")["model"] == registry.served_name(workload, second)
    assert registry.rollback(workload) == (first, second)


def served(url: str) -> dict[str, str]:
    return {entry["id"]: entry["version"] for entry in httpx.get(f"{url}/v1/models").json()["data"]}


@pytest.mark.parametrize("damage", ["corrupt", "missing", "changed"])
def test_a_version_that_cannot_be_loaded_is_never_tried_and_says_why(
    house: str, workload: str, register: Callable[..., str], damage: str
) -> None:
    version = register(damage=damage)
    folder = registry.version(workload, version).folder
    if damage == "missing":
        (folder / "model.gguf").unlink()
    else:
        (folder / "model.gguf").write_bytes(b"GGUF and then nothing")
    state.begin(workload, version, HALF, "release", "passed")
    told = ended(workload)
    assert told["status"] == state.ROLLED_BACK and "registered was" in told["decisions"][-1]["reason"]
    assert ask(house, workload, "c1")["choices"][0]["message"] == ANSWER


@pytest.mark.parametrize("damage", ["corrupt", "missing", "changed", "fatal"])
def test_a_champion_that_cannot_be_served_leaves_the_old_one_serving(
    house: str, workload: str, artifact: Callable[..., Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No engine reads it; a file is gone; its hash is another; or the engine that loads it takes its process along."""
    first, folder = artifact(candidate_id="one"), artifact(candidate_id="two")
    if damage == "corrupt":
        (folder / "model.gguf").write_bytes(b"GGUF and then nothing")
    if damage == "fatal":
        fatal(folder)
    old, new = (
        registry.register(workload, made, metrics={}, tags={}, parameters={}, run_name="test")[0]
        for made in (first, folder)
    )
    registry.promote(workload, old)
    eventually(lambda: served(house).get(workload) == old, 60)
    registered = registry.version(workload, new).folder / "model.gguf"
    if damage == "missing":
        registered.unlink()
    if damage == "changed":
        with registered.open("ab") as file:
            file.write(b" ")
    registry.promote(workload, new)
    said = eventually(lambda: httpx.get(f"{house}/v1/models").json()["problems"].get(workload), 60)
    expected = {"corrupt": "llama.cpp cannot load", "fatal": "dies when it loads it: SIGABRT"}.get(
        damage, "registered was"
    )
    assert said.startswith(f"version {new}: ") and expected in said
    assert expected in caplog.text, "the log says it, too"
    assert ask(house, workload, "c1")["model"] == registry.served_name(workload, old)
    registry.rollback(workload)
    eventually(lambda: workload not in httpx.get(f"{house}/v1/models").json()["problems"])
    assert ask(house, workload, "c1")["model"] == registry.served_name(workload, old)


def test_swap_after_swap_under_load_no_request_fails(house: str, workload: str, register: Callable[..., str]) -> None:
    versions = [register(candidate_id=name) for name in ("one", "two")]
    registry.promote(workload, versions[0])
    eventually(lambda: served(house).get(workload) == versions[0], 60)
    stop, answered, problems = threading.Event(), [], []

    def customer(number: int) -> None:
        try:
            while not stop.is_set():
                answered.append(ask(house, workload, f"c{number}", max_tokens=2)["model"])
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=customer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 7):
        registry.promote(workload, versions[n % 2])
        eventually(lambda n=n: served(house)[workload] == versions[n % 2], 60)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems and set(answered) == {registry.served_name(workload, version) for version in versions}


def test_a_restarted_gateway_goes_on_and_two_agree(
    tmp_path: Path, registry_uri: str, teacher: type[Teacher], workload: str, register: Callable[..., str]
) -> None:
    with living_in(tmp_path / "home", TEACHER=teacher.url, THREADS="1", MLFLOW=registry_uri):
        version = register()
        state.begin(
            workload, version, RolloutSpec((Step(0.5, requests=8), Step(0.75, requests=1000))), "release", "passed"
        )
        student = registry.served_name(workload, version)
        with listening(create_app(teacher.url)) as one:
            taken_up(one, workload)
            before = {n: ask(one, workload, f"c{n}").get("model") == student for n in range(6)}
        assert told_requests(workload) == 6, "what was seen before the end is in the database"
        with listening(create_app(teacher.url)) as one, listening(create_app(teacher.url)) as two:
            for url in (one, two):
                assert taken_up(url, workload)["step"] == 0
                assert {n: ask(url, workload, f"c{n}").get("model") == student for n in before} == before
            for n in range(6, 60):
                ask((one, two)[n % 2], workload, f"c{n}")
                if state.running(workload)[0].step:
                    break
            for url in (one, two):
                eventually(lambda url=url: taken_up(url, workload)["step"] == 1)
            state.end(state.running(workload)[0].id, state.ABORTED, "by hand")
            for url in (one, two):
                eventually(lambda url=url: not httpx.get(f"{url}/v1/models").json()["rollouts"])
                assert ask(url, workload, "c1").get("model") != student


def told_requests(workload: str) -> int:
    with session(write=False) as db:
        return db.scalar(select(func.count()).select_from(RolloutCall)) or 0


def test_a_database_that_takes_nothing_leaves_the_customers_to_the_reference(
    tmp_path: Path, registry_uri: str, teacher: type[Teacher], workload: str, register: Callable[..., str]
) -> None:
    with (
        cluster() as postgres,
        living_in(
            tmp_path / "home", TEACHER=teacher.url, THREADS="1", MLFLOW=registry_uri,
            DATABASE=new_database(postgres.url),
        ),
    ):  # fmt: skip
        version = register()
        state.begin(workload, version, HALF, "release", "passed")
        with listening(create_app(teacher.url)) as url:
            taken_up(url, workload)
            student = registry.served_name(workload, version)
            mine = next(name for n in range(50) if ask(url, workload, name := f"c{n}").get("model") == student)
            postgres.control("stop")
            ask(url, workload, mine)
            eventually(lambda: taken_up(url, workload)["halted"])
            assert ask(url, workload, mine).get("model") != student
            postgres.control("start")
            told = ended(workload)
            assert (told["status"], told["decisions"][-1]["reason"][:12]) == (state.ROLLED_BACK, "missing data")
            assert ask(url, workload, mine).get("model") != student
