"""Who gets in, how often, and that no secret gets out."""

import json
import logging
from typing import Any

import httpx
import pytest

from infra.gateway.access import RateLimit, Tokens, require_tokens
from infra.gateway.app import create_app
from infra.gateway.errors import Refused
from infra.gateway.server import serve
from infra.settings import SetupError
from tests.conftest import living_in
from tests.infra.gateway.conftest import Teacher, eventually
from tests.infra.gateway.test_app import in_time, rows

WEB, OLD, APP = "w" * 20, "o" * 20, "a" * 20
TOKENS = f"web:{WEB}, web:{OLD},app:{APP}"
MESSAGES = [{"role": "user", "content": "where is order 48213"}]
ASK = {"model": "shop", "messages": MESSAGES}


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"authorization": f"{scheme} {token}"}


WRONG: list[dict[str, Any]] = [
    {}, bearer("x" * 20), bearer(WEB, "Basic"), bearer(WEB[:-1]), {"authorization": "Bearer"},
    {"authorization": WEB}, {"authorization": b"Bearer w\xe4hrung"},
]  # fmt: skip
PROTOBUF = {"content-type": "application/x-protobuf"}


def post(url: str, path: str = "/v1/chat/completions", body: Any = ASK, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{url}{path}", json=body, headers=given, timeout=30)


def test_only_a_token_lets_write_and_its_client_is_recorded(open_house: Any, teacher: type[Teacher]) -> None:
    from infra.database.tables import Feedback, Interaction

    teacher.scripts.pop("shop", None)
    with open_house(TOKENS=TOKENS) as url:
        for path in ("/v1/chat/completions", "/v1/feedback", "/v1/nowhere"):
            for wrong in WRONG:
                answer = post(url, path, **wrong)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert rows(Interaction) == rows(Feedback) == []
        asked = len(teacher.asked)
        for token, user in ((WEB, ""), (OLD, "ann"), (APP, "ann")):
            headers = bearer(token, "bearer") | ({"x-flywheel-client": user} if user else {})
            assert post(url, **headers).status_code == 200
        assert [row.client for row in in_time(Interaction)] == ["web", "web/ann", "app/ann"]
        assert all("authorization" not in headers for headers, _ in teacher.asked[asked:]), "our token is not theirs"
        assert httpx.get(f"{url}/healthz").status_code == httpx.get(f"{url}/v1/models").status_code == 200


def test_without_tokens_the_clients_key_goes_to_the_teacher_and_with_a_key_never(
    open_house: Any, teacher: type[Teacher]
) -> None:
    teacher.scripts.pop("shop", None)
    with open_house() as url:
        post(url, **bearer("sk-theirs"))
        assert teacher.asked[-1][0]["authorization"] == "Bearer sk-theirs"
    with open_house(TEACHER_KEY="sk-ours") as url:
        post(url, **bearer("sk-theirs"))
        assert teacher.asked[-1][0]["authorization"] == "Bearer sk-ours"


def test_a_refused_exporter_is_told_in_its_own_form(open_house: Any) -> None:
    from google.rpc.status_pb2 import Status

    with open_house(TOKENS=TOKENS, RATE_LIMIT="1") as url:
        answer = httpx.post(f"{url}/v1/traces", content=b"", headers=PROTOBUF)
        assert (answer.status_code, Status.FromString(answer.content).code) == (401, 16)
        headers = {**bearer(WEB), "content-type": "application/json"}
        assert httpx.post(f"{url}/v1/logs", content=b'{"resourceLogs": []}', headers=headers).status_code == 200
        answer = httpx.post(f"{url}/v1/logs", content=b'{"resourceLogs": []}', headers=headers)
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, 8, "60")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (WEB, "pair 1 is not CLIENT:TOKEN"),
        (f"web:{WEB},app:", "pair 2 is not CLIENT:TOKEN"),
        (f"a/b:{WEB}", "pair 1 is not"),
        (f"web:{WEB}ü", "printable ASCII"),
        ("web:secret", "the token of 'web' has 6 characters, under 16"),
        (f"web:{WEB},app:{WEB}", "pair 2 repeats another client's token"),
    ],
)
def test_tokens_that_cannot_be_read_are_named_but_not_shown(tokens: str, said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        Tokens(tokens)
    assert WEB not in str(caught.value) and "secret:" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "gateway.example"])
def test_beyond_this_machine_tokens_are_needed(home: Any, host: str) -> None:
    with pytest.raises(SetupError, match=r"FLYWHEEL_TOKENS.*secrets"):
        serve(create_app(), host, 0)
    with living_in(home, TOKENS=TOKENS):
        require_tokens(host)
    for local in ("127.0.0.1", "localhost", "::1"):
        require_tokens(local)


def test_a_bucket_lets_a_minutes_worth_through_and_refills() -> None:
    now = [1000.0]
    rate = RateLimit(3, lambda: now[0])
    left = [rate.take("a")["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            rate.take("a")
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "20")
    assert caught.value.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert rate.take("b")["x-ratelimit-remaining-requests"] == "2", "each client has its own"
    now[0] += 20
    assert rate.take("a")["x-ratelimit-remaining-requests"] == "0"
    now[0] += 3600
    assert rate.take("a")["x-ratelimit-remaining-requests"] == "2"


def test_clients_are_forgotten_when_their_bucket_is_full() -> None:
    now = [0.0]
    rate = RateLimit(60, lambda: now[0])
    for n in range(10_000):
        now[0] += 0.01
        rate.take(f"client-{n}")
    assert len(rate.full_at) <= 101


def test_who_asks_too_often_is_told_when_to_come_back(open_house: Any, teacher: type[Teacher]) -> None:
    teacher.scripts.pop("shop", None)
    with open_house(RATE_LIMIT="2") as url:
        first, _, third = (post(url) for _ in range(3))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(third.headers["retry-after"]) <= 30
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_no_log_line_holds_a_secret_or_what_was_said(
    open_house: Any, teacher: type[Teacher], caplog: pytest.LogCaptureFixture
) -> None:
    """The teacher echoes the key, an answer cannot be stored, the database goes away, the gateway itself fails."""
    from infra.database.session import session
    from infra.database.tables import Interaction

    said, key = "my-card-is-4111", "sk-very-secret-key"
    caplog.set_level(logging.DEBUG, "flywheel")
    caplog.set_level(logging.INFO, "httpx")
    caplog.set_level(logging.DEBUG, "uvicorn")
    ask = {"model": "shop", "messages": [{"role": "user", "content": said}]}
    with open_house(TOKENS=TOKENS, TEACHER_KEY=key) as url:
        teacher.scripts["shop"] = lambda self: self.reply(
            401, {"error": f"no such key: {self.headers['authorization']}"}
        )
        echo = post(url, body=ask, **bearer(WEB))
        assert (echo.status_code, key in echo.text, "***" in echo.text) == (502, False, True)
        assert key not in json.dumps(rows(Interaction)[0].response)
        post(url, body=ask, **bearer("wrong-token-wrong-token"))
        teacher.scripts.pop("shop")
        with session() as db:
            db.connection().exec_driver_sql("ALTER TABLE interaction RENAME TO elsewhere")
        assert post(url, body=ask, **bearer(WEB)).status_code == 200
        assert post(
            url, "/v1/feedback", {"record_id": "a", "kind": "correction", "value": said}, **bearer(WEB)
        ).is_success
        with session() as db:
            db.connection().exec_driver_sql("ALTER TABLE elsewhere RENAME TO interaction")
        eventually(lambda: len(rows(Interaction)) == 2)
    assert "the database is away" in caplog.text
    for secret in (said, key, WEB, "wrong-token", "48213"):
        assert secret not in caplog.text
