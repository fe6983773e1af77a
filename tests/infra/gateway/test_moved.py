"""A person moves an alias in MLflow's API: a real server's webhook reaches a real gateway."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from infra import promotions, registry, webhook
from infra.database.session import session
from infra.database.tables import Delivery, Promotion
from infra.gateway.app import create_app
from infra.settings import SetupError
from tests.conftest import living_in
from tests.infra.gateway.conftest import eventually
from tests.infra.gateway.test_app import ASK, listening
from tests.infra.test_webhook import signed
from tests.mlflow_server import mlflow_server

TOKEN = "a-token-of-the-app-1234"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("keys")
    with living_in(home):
        environment = webhook.server_environment()
    # It remembers for a minute whom to call; here each test has a gateway of its own.
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), MLFLOW_WEBHOOK_CACHE_TTL="0", **environment) as url:
        yield url


@pytest.fixture
def house(server: str, tmp_path: Path) -> Any:
    """`with house() as (url, begun)`: a gateway that MLflow calls, and the redeploys that it has begun."""

    @contextmanager
    def opened(redeploy: Callable[[str, str], str] | None = None) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        begun: list[tuple[str, str]] = []

        def begin(workload: str, delivery: str) -> str:
            begun.append((workload, delivery))
            return redeploy(workload, delivery) if redeploy else "noted"

        with (
            living_in(tmp_path / "home", TEACHER="", MLFLOW=server, TOKENS=f"app:{TOKEN}"),
            listening(create_app(None, begin)) as url,
        ):
            webhook.subscribe(server, url)
            webhook.subscribe(server, url)
            yield url, begun

    return opened


def registered(workload: str, folder: Path) -> str:
    version, _ = registry.register(workload, folder, metrics={}, tags={}, parameters={}, run_name="test")
    return version


def client_of(server: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(server, server)


def story(workload: str) -> list[tuple[str | None, str]]:
    with session(write=False) as db:
        rows = db.scalars(select(Promotion).where(Promotion.workload == workload).order_by(Promotion.at))
        return [(row.version, row.by) for row in rows]


def test_an_alias_that_is_moved_by_hand_begins_redeploy_and_is_served(
    house: Any, server: str, artifact: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flywheel")
    with house() as (url, begun):
        assert [hook.name for hook in client_of(server).list_webhooks()] == [webhook.NAME], "made once"
        version = registered("shop", artifact(hand=1))
        client_of(server).set_registered_model_alias("shop", "champion", version)
        ((workload, delivery),) = eventually(lambda: begun, 60)
        assert workload == "shop" and delivery

        def served() -> str | None:
            listed = httpx.get(f"{url}/v1/models", timeout=30).json()["data"]
            return next((one["version"] for one in listed if one["id"] == "shop"), None)

        assert eventually(served, 60) == version
        opens = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=opens, timeout=60)
        assert answer.json()["model"] == f"flywheel:shop/{version}"
        assert story("shop") == [(version, "hand")]
        assert client_of(server).get_model_version("shop", version).tags["promoted_by"] == "hand, not gated"
        assert [r.message for r in caplog.records if "did not pass the gate" in r.message and r.levelname == "WARNING"]

        client_of(server).delete_registered_model_alias("shop", "champion")
        eventually(lambda: served() is None, 60)
        eventually(lambda: story("shop") == [(version, "hand"), (None, "hand")], 60)
        assert len(begun) == 1, "there is nothing to redeploy"


def test_our_own_moves_other_aliases_and_models_of_others_begin_nothing(
    house: Any, server: str, artifact: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="flywheel.gateway")
    with house() as (_, begun):
        version = registered("own", artifact(own=1))
        promotions.promote("own", version, "release", "passed the gate")
        client_of(server).set_registered_model_alias("own", "challenger", version)
        client_of(server).create_registered_model("somebody's")
        client_of(server).create_model_version("somebody's", "s3://nowhere/model")
        client_of(server).set_registered_model_alias("somebody's", "champion", "1")

        def handled() -> bool:
            return sum("webhook " in record.message and "ignored" in record.message for record in caplog.records) == 3

        eventually(handled, 60)
        assert not begun and story("own") == [(version, "release")]


def test_nobody_else_can_call_and_no_call_counts_twice(house: Any, server: str) -> None:
    with house() as (url, begun):
        address = f"{url}{webhook.PATH}"
        body = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "none", "alias": "champion"}}'
        unsigned = httpx.post(address, content=body, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert (unsigned.status_code, unsigned.json()["error"]["code"]) == (401, "invalid_signature")
        headers = signed(body, "d-9")
        first, again = (httpx.post(address, content=body, headers=headers, timeout=60) for _ in range(2))
        assert (first.status_code, again.status_code) == (200, 409), (first.text, again.text)
        late = httpx.post(address, content=body, headers=signed(body, "d-8", int(time.time()) - 301), timeout=60)
        assert late.status_code == 401 and "clocks" in late.json()["error"]["message"]
        assert httpx.post(address, content=b"[]", headers=signed(b"[]", "d-7"), timeout=60).status_code == 400
        assert httpx.get(address, timeout=60).status_code == 405
        assert not begun
    with house() as (url, _):
        after = httpx.post(f"{url}{webhook.PATH}", content=body, headers=headers, timeout=60)
        assert after.status_code == 409, "a restarted gateway knows it, too"


def test_a_redeploy_that_cannot_begin_is_tried_again_by_mlflow(
    house: Any, server: str, artifact: Callable[..., Path]
) -> None:
    tries = []

    def begin(workload: str, delivery: str) -> str:
        tries.append(delivery)
        if len(tries) == 1:
            raise SetupError("Prefect is away")
        return "noted"

    with house(begin):
        client_of(server).set_registered_model_alias("later", "champion", registered("later", artifact(later=1)))
        eventually(lambda: len(tries) == 2, 60)
        assert tries[0] == tries[1], "the same delivery"
        with session(write=False) as db:
            assert eventually(lambda: db.get(Delivery, tries[0]), 10)
