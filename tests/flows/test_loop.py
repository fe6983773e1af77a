"""The closed loop: traffic, the wheel, a canary, full service, drifted traffic, and the next turn that recovers.

Customers of the shop ask a gateway on a real port; behind it stands a teacher that is always right. The first student
learns four of the shop's intents. Then customers come with three others, which it answers wrongly; they object, and the
next turn learns from that. What the test knows at the end, it has from the database alone.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import httpx
import pytest
from sqlalchemy import create_engine, text

from flows.flywheel import flywheel
from infra import registry
from infra.gateway.app import create_app
from infra.rollout import state
from infra.rollout.spec import RolloutSpec, Step
from infra.seedling import phrases, shop
from infra.settings import settings
from quant.methods import RTN
from tasks.curate import CurateSpec
from tasks.lessons import Imitation
from tasks.quantize import CandidateSpec
from tasks.release import GateSpec
from tasks.students import Causal
from tests.conftest import answering, living_in
from tests.infra.gateway.conftest import Server, eventually
from tests.infra.gateway.test_app import listening
from tests.shop_log import WORKLOAD

OLD, NEW = shop.TALK[2:6], (shop.TALK[0], *shop.TALK[6:8])
OPENERS = ("", "Hi, ", "Hello, ", "Please: ", "A question: ", "Excuse me, ", "Sorry to ask, ", "So, ", "Tell me, ")
# Both of its steps are short, and latency says nothing here: the teacher looks its answers up.
ROLLOUT = RolloutSpec(
    (Step(0, requests=10), Step(0.5, requests=20, opinions=5)), errors=0.1, objections=0.3, slower=1000.0
)


class Oracle(BaseHTTPRequestHandler):
    """A teacher that knows what each of the customers should be told."""

    right: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"role": "assistant", "content": self.right[asked["messages"][-1]["content"]]}
        body = json.dumps({"model": "oracle", "choices": [{"message": answer, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("loop") / "home"
    with (
        answering(Server(("127.0.0.1", 0), Oracle)) as teacher,
        living_in(home, TEACHER=f"{teacher}/v1", THREADS="1", REDACT="none"),
        listening(create_app(f"{teacher}/v1")) as url,
    ):
        yield url


class Street:
    """Customers, one after the other; whoever gets a wrong answer corrects it or presses the thumb down."""

    def __init__(self, url: str) -> None:
        self.url, self.came, self.lock = url, 0, threading.Lock()

    def send(self, count: int, intents: tuple[shop.Talk, ...]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: self.one(intents), range(count)))

    def one(self, intents: tuple[shop.Talk, ...]) -> None:
        with self.lock:
            self.came += 1
            rng, conversation = Random(self.came), f"customer-{self.came}"
        talk = rng.choice(intents)
        values = {"name": rng.choice(phrases.FIRST), "city": rng.choice(phrases.CITIES), "date": phrases.date(rng)}
        said = rng.choice(OPENERS) + phrases.say(rng.choice(talk.train), values, rng)
        Oracle.right[said] = talk.answer
        messages = [{"role": "system", "content": shop.SYSTEM}, {"role": "user", "content": said}]
        body = {"model": WORKLOAD, "messages": messages, "tools": shop.tool_schemas()}
        headers = {"x-flywheel-conversation": conversation}
        answer = self.post("/v1/chat/completions", body, headers)
        right = answer["choices"][0]["message"].get("content") == talk.answer
        if right and rng.random() < 0.5:
            self.post("/v1/feedback", {"record_id": answer["id"], "kind": "thumb", "value": 1})
        if not right:
            corrected = {"kind": "correction", "value": talk.answer}
            opinion = corrected if rng.random() < 0.6 else {"kind": "thumb", "value": -1}
            self.post("/v1/feedback", {"record_id": answer["id"], **opinion})

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until_it_serves(self, intents: tuple[shop.Talk, ...]) -> None:
        """Traffic for as long as a version is under way."""
        eventually(lambda: httpx.get(f"{self.url}/v1/models").json()["rollouts"], 120)
        for _ in range(60):
            self.send(10, intents)
            if not state.running(WORKLOAD):
                return
        raise AssertionError("the rollout does not end")


def turn() -> dict[str, Any]:
    result: dict[str, Any] = flywheel.fn(  # without Prefect, which has tests of its own
        WORKLOAD, curate=CurateSpec(near_duplicate=1.0),
        distill=Causal(max_steps=300, epochs=80, learn=Imitation()),
        candidates=(CandidateSpec(RTN(bits=8)),), gate=GateSpec(margin=0.45, min_holdout=10), rollout=ROLLOUT,
    )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def home(gateway: str) -> Path:
    """The home after all of it."""
    street = Street(gateway)
    street.send(160, OLD)
    first = turn()
    assert first["outcome"] == "promote", first["reasons"]
    street.until_it_serves(OLD)
    street.send(30, OLD)
    street.send(160, (*NEW, *NEW, *OLD))
    second = turn()
    assert second["outcome"] == "promote", second["reasons"]
    street.until_it_serves((*NEW, *OLD))
    street.send(40, (*NEW, *OLD))
    return settings().home


def rows(home: Path, query: str) -> list[Any]:
    with create_engine(f"sqlite:///{home / 'flywheel.db'}").connect() as db:
        return [tuple(row) for row in db.execute(text(query))]


OBJECTED = (
    "SELECT 1.0 * sum(f.kind = 'correction' OR f.value = '-1') / count(*) FROM interaction i "
    "JOIN feedback f ON f.record_id = i.external_id WHERE i.model LIKE 'flywheel:%' AND i.at"
)


def test_the_database_tells_the_whole_story(home: Path) -> None:
    one, two = rows(home, "SELECT version, reference, status FROM rollout ORDER BY id")
    assert one[1:] == ("teacher", "promoted") and two[1:] == (one[0], "promoted"), "each was held against what served"
    told = "SELECT action FROM rollout_decision JOIN rollout r ON r.id = rollout_id WHERE r.version = '{}' ORDER BY at"
    for version in (one[0], two[0]):
        assert [row[0] for row in rows(home, told.format(version))] == ["begin", "step", "full", "promoted"]
    verdicts = rows(home, "SELECT outcome, reference, model_version FROM verdict ORDER BY created")
    assert verdicts == [("promote", "teacher", one[0]), ("promote", f"champion:{one[0]}, teacher", two[0])]
    moves = rows(home, "SELECT version, replaced, by, reason FROM promotion WHERE at IS NOT NULL ORDER BY at")
    held = "the 2 steps of rollout {} have held"
    assert moves == [(one[0], None, "rollout", held.format(1)), (two[0], one[0], "rollout", held.format(2))]


def test_feedback_fell_with_the_drift_and_rose_with_the_next_turn(home: Path) -> None:
    (first_end,), (second_end,) = rows(home, "SELECT ended FROM rollout ORDER BY id")
    (second_begin,) = rows(home, "SELECT created FROM rollout ORDER BY id")[1]
    canary, drift, after = (
        rows(home, f"{OBJECTED} {period}")[0][0]
        for period in (f"< '{first_end}'", f"BETWEEN '{first_end}' AND '{second_begin}'", f"> '{second_end}'")
    )
    # Half of the right answers are praised and all wrong ones objected to: 0.4 is a quarter of them wrong.
    assert canary < 0.4 and drift > 0.6 and after < 0.45, (canary, drift, after)


def test_shadow_answers_are_no_traffic_and_no_lesson(home: Path) -> None:
    shadows = "FROM rollout_call c JOIN interaction i ON i.external_id = c.id WHERE c.answer IS NOT NULL"
    ((count, by_reference),) = rows(
        home,
        f"SELECT count(*), sum(i.model IS NULL OR i.model != 'flywheel:{WORKLOAD}/' || (SELECT version FROM rollout r "
        f"WHERE r.id = c.rollout_id)) {shadows}",
    )
    assert count >= 20 and by_reference == count
    ((calls, interactions),) = rows(
        home, "SELECT (SELECT count(DISTINCT conversation) FROM interaction), (SELECT count(*) FROM interaction)"
    )
    assert calls == interactions, "one customer, one call, one interaction"


def test_the_registry_says_the_same(home: Path) -> None:
    (first,), (second,) = rows(home, "SELECT version FROM rollout ORDER BY id")
    assert registry.champion_number(WORKLOAD) == second
    assert registry.rollback(WORKLOAD) == (first, second)
