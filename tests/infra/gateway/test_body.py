"""Bodies of every bad kind get 4xx in the form of the client's own protocol, and no more memory than the limit."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.database.jsontext import Rejected
from infra.database.tables import Feedback, Interaction
from infra.gateway.body import DEEPEST, document
from tests.infra.gateway.test_app import rows

MIB = 1 << 20
DEEP = [b"[" * n + b"]" * n for n in (DEEPEST, 500, 900, 980, 5000, 100_000)]
MESSAGES = b'"messages": [{"role": "user", "content": "hi"}]'


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, registry_uri: str, teacher: Any) -> Iterator[str]:
    """A gateway that reads no more than 1 MiB."""
    from infra.gateway.app import create_app
    from tests.conftest import living_in
    from tests.infra.gateway.test_app import listening

    home = tmp_path_factory.mktemp("home")
    with (
        living_in(home, TEACHER="", MLFLOW=registry_uri, BODY_LIMIT_MB="1"),
        listening(create_app(teacher.url)) as url,
    ):
        yield url


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
@pytest.mark.parametrize(
    "raw",
    [
        b"", b"not json", b"[]", b"null", b'"text"', b"{", b"\xff\xfe{}", b'{"model": "\xc3"}', b'{"model": NaN}',
        b'{"model": "shop", "messages": 1e999}', b'{"model": "shop", "x": "\\ud800"}',
        *(b'{"model": "shop", ' + MESSAGES + b', "deep": ' + deep + b"}" for deep in DEEP),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_a_400(narrow: str, path: str, raw: bytes) -> None:
    answer = httpx.post(f"{narrow}{path}", content=raw)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (400, {"message", "type", "param", "code"}), raw[:80]
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 300


@pytest.mark.parametrize(
    "more",
    [
        {"model": 7}, {"model": ""}, {"model": "m" * 600}, {"model": "a\x00"}, {"messages": "hi"}, {"messages": [7]},
        {"messages": [{"role": "user", "content": 7}]}, {"tools": "x"}, {"tools": [7]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": 7}]}]},
    ],
)  # fmt: skip
def test_an_object_that_is_no_request_is_a_400(narrow: str, more: dict[str, Any]) -> None:
    body = {"model": "shop", "messages": [{"role": "user", "content": "hi"}], **more}
    answer = httpx.post(f"{narrow}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert rows(Interaction) == []


@pytest.mark.parametrize("more", [{"value": 7}, {"value": {"a": 1}}, {"record_id": {}}, {"timestamp": "soon"}])
def test_an_object_that_is_no_feedback_is_a_422(narrow: str, more: dict[str, Any]) -> None:
    answer = httpx.post(f"{narrow}/v1/feedback", json={"record_id": "a", "kind": "thumb", "value": 1, **more})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")
    assert rows(Feedback) == []


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size >> 16):
        yield b"x" * (1 << 16)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback", "/v1/traces"])
def test_a_body_over_the_limit_is_a_413_whether_or_not_its_size_is_told(narrow: str, path: str, chunked: bool) -> None:
    size = 40 * MIB
    tracemalloc.start()
    headers = {"content-type": "application/json"}
    answer = httpx.post(
        f"{narrow}{path}", content=pieces(size) if chunked else b"x" * size, headers=headers, timeout=60
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    told = answer.json()
    assert answer.status_code == 413 and "1048576 bytes" in json.dumps(told)
    assert ("code" in told) if path == "/v1/traces" else (told["error"]["code"] == "request_too_large")
    assert not chunked or peak < 8 * MIB
    assert httpx.get(f"{narrow}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/v1/nothing", 404), ("GET", "/v1/feedback", 405), ("PUT", "/healthz", 405)]
)
def test_an_address_that_is_none_is_told_in_openais_form(narrow: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{narrow}{path}")
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})
    assert path in answer.json()["error"]["message"]


def test_depth_is_counted_to_the_level() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert document(nested(DEEPEST))
    with pytest.raises(Rejected, match=str(DEEPEST)):
        document(nested(DEEPEST + 1))
    assert document(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_feedback_under_the_id_of_another_is_a_409_and_kept(narrow: str) -> None:
    from infra.database.tables import Quarantine

    given = {"id": "f1", "record_id": "a", "kind": "thumb", "value": 1}
    statuses = [httpx.post(f"{narrow}/v1/feedback", json={**given, "value": value}).status_code for value in (1, 1, -1)]
    assert statuses == [200, 200, 409]
    assert len(rows(Feedback)) == len(rows(Quarantine)) == 1
