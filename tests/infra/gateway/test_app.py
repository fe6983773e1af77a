"""The gateway with a real registry, database and engines: who answers, what is recorded, what is refused."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from infra import registry
from infra.database.session import session
from infra.database.tables import Feedback, Interaction
from infra.engines import load
from infra.gateway.app import create_app
from tests.models import PREFIX

MESSAGES, TOOLS = PREFIX.restore([{"role": "user", "content": "where is order 48213"}])
LISTENING: list[str] = []
ASK: dict[str, Any] = {"model": "shop", "messages": MESSAGES, "tools": TOOLS}


@asynccontextmanager
async def gateway(teacher: Any = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(teacher)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:
            yield client


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The app on a real port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    LISTENING.append(url)
    try:
        yield url
    finally:
        LISTENING.remove(url)
        server.should_exit = True
        thread.join()


def counted(url: str) -> dict[str, float]:
    """The gateway's counters, by name and labels."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join([sample.name, *sorted(sample.labels.values())]): sample.value for sample in samples}


def promote(folder: Path) -> str:
    version, _ = registry.register("shop", folder, metrics={}, tags={}, parameters={}, run_name="test")
    registry.promote("shop", version)
    return version


def rows(table: type) -> list[Any]:
    """What is in the database when nothing is on its way there."""
    for url in LISTENING:
        while counted(url)["flywheel_records_waiting"]:
            time.sleep(0.02)
    with session(write=False) as db:
        return list(db.scalars(select(table).order_by(table.id)))


def in_time(table: type) -> list[Any]:
    """The same by the time of the call: what is stored together is not stored in order."""
    return sorted(rows(table), key=lambda row: row.at)


def test_a_call_is_answered_and_recorded_and_feedback_finds_it(home: Path, artifact: Callable[..., Path]) -> None:
    async def scene() -> dict[str, Any]:
        async with gateway(load(artifact())) as client:
            headers = {"x-flywheel-conversation": "c1", "x-flywheel-client": "web"}
            answer = (await client.post("/v1/chat/completions", json=ASK, headers=headers)).json()
            given = {"record_id": answer["id"], "kind": "correction", "value": "It is on its way."}
            assert (await client.post("/v1/feedback", json=given)).status_code == 200
            return answer

    answer = asyncio.run(scene())
    (stored,), (opinion,) = rows(Interaction), rows(Feedback)
    assert (stored.source, stored.external_id, stored.workload) == ("gateway", answer["id"], "shop")
    assert (stored.conversation, stored.client, stored.request["messages"]) == ("c1", "web", MESSAGES)
    assert stored.response["choices"][0]["message"]["content"] == answer["choices"][0]["message"]["content"]
    assert stored.completion_tokens == answer["usage"]["completion_tokens"]
    assert (opinion.record_id, opinion.kind, opinion.value["content"]) == (
        answer["id"],
        "correction",
        "It is on its way.",
    )


def test_a_new_champion_takes_over_without_a_failed_request(home: Path, artifact: Callable[..., Path]) -> None:
    async def scene() -> list[str]:
        first = promote(artifact(candidate_id="one"))
        models: list[str] = []
        async with gateway() as client:

            async def customer() -> None:
                while len(models) < 4000 and (not models or models[-1] == registry.served_name("shop", first)):
                    answer = await client.post("/v1/chat/completions", json=ASK)
                    assert answer.status_code == 200, answer.text
                    models.append(answer.json()["model"])

            customers = [asyncio.create_task(customer()) for _ in range(4)]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(promote, artifact(candidate_id="two"))
            await asyncio.wait_for(asyncio.gather(*customers), 60)
            listed = (await client.get("/v1/models")).json()["data"]
            assert [(m["id"], m["version"]) for m in listed] == [("shop", "2")]
        return models

    models = asyncio.run(scene())
    assert models[0] == "flywheel:shop/1"
    assert models[-1] == "flywheel:shop/2"


def test_another_prefix_goes_to_the_teacher(home: Path, artifact: Callable[..., Path]) -> None:
    other = {**ASK, "messages": [{"role": "system", "content": "Be brief."}, MESSAGES[-1]]}

    async def scene() -> tuple[str, str]:
        promote(artifact())
        async with gateway(load(artifact(prefix=None))) as client:
            answers = [(await client.post("/v1/chat/completions", json=body)).json() for body in (ASK, other)]
            return answers[0]["model"], answers[1]["model"]

    student, teacher = asyncio.run(scene())
    assert registry.is_student(student)
    assert teacher.startswith("teacher:")


def test_where_a_classifier_abstains_the_teacher_answers(
    home: Path, artifact: Callable[..., Path], labelled: Callable[..., Path]
) -> None:
    unknown = {**ASK, "messages": [MESSAGES[0], {"role": "user", "content": "something else"}]}

    async def scene() -> list[dict[str, Any]]:
        promote(labelled())
        async with gateway(load(artifact())) as client:
            assert (await client.get("/v1/models")).json()["data"][0]["engine"] == "onnx"
            return [(await client.post("/v1/chat/completions", json=body)).json() for body in (ASK, unknown)]

    answers = asyncio.run(scene())
    assert answers[0]["choices"][0]["message"] == {"role": "assistant", "content": "shipping"}
    assert [registry.is_student(answer["model"]) for answer in answers] == [True, False]
    assert [registry.is_student(row.model) for row in in_time(Interaction)] == [True, False], (
        "each call is recorded once"
    )


def test_without_a_teacher_an_abstention_is_said(home: Path, labelled: Callable[..., Path]) -> None:
    async def scene() -> httpx.Response:
        promote(labelled(threshold=1.0))
        async with gateway() as client:
            return await client.post("/v1/chat/completions", json=ASK)

    answer = asyncio.run(scene())
    assert answer.status_code == 503
    assert "no champion answers this of 'shop' and there is no teacher; set FLYWHEEL_TEACHER" in answer.text


def test_a_stream_is_the_same_answer_in_chunks(home: Path, artifact: Callable[..., Path]) -> None:
    async def scene() -> tuple[str, str]:
        async with gateway(load(artifact())) as client:
            whole = (await client.post("/v1/chat/completions", json=ASK)).json()
            streamed = await client.post("/v1/chat/completions", json={**ASK, "stream": True})
            lines = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
            assert lines[-1] == "[DONE]"
            chunks = [json.loads(line) for line in lines[:-1]]
            said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
            return whole["choices"][0]["message"]["content"], said

    whole, said = asyncio.run(scene())
    assert whole == said
    assert len(rows(Interaction)) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_endpoint_teacher_is_forwarded_and_recorded(home: Path, artifact: Callable[..., Path], stream: bool) -> None:
    """The endpoint is a second gateway on a real port: an OpenAI-compatible server like any other."""

    async def scene(address: str) -> httpx.Response:
        async with gateway(f"{address}/v1") as client:
            return await client.post("/v1/chat/completions", json={**ASK, "stream": stream})

    with listening(create_app(load(artifact()))) as address:
        answer = asyncio.run(scene(address))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    # Both gateways share one database here; each has recorded the call under an id of its own.
    stored, theirs = in_time(Interaction)
    assert stored.response["choices"] == theirs.response["choices"]
    assert (stored.response["upstream_id"], stored.external_id in answer.text) == (theirs.external_id, True)


def test_an_endpoint_that_is_down_is_a_502(home: Path) -> None:
    async def scene() -> httpx.Response:
        async with gateway("http://127.0.0.1:9/v1") as client:
            return await client.post("/v1/chat/completions", json=ASK)

    answer = asyncio.run(scene())
    assert answer.status_code == 502
    assert "127.0.0.1:9" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", "not json", 400, "no JSON object"),
        ("/v1/chat/completions", {"model": "shop"}, 400, "messages"),
        ("/v1/chat/completions", {"messages": MESSAGES}, 400, "model"),
        ("/v1/chat/completions", {"model": "shop", "messages": [{"role": "wizard"}]}, 400, "wizard"),
        ("/v1/chat/completions", ASK, 503, "FLYWHEEL_TEACHER"),
        ("/v1/feedback", {"kind": "thumb", "value": 1}, 422, "record_id"),
        ("/v1/feedback", {"record_id": "x", "kind": "thumb", "value": 7}, 422, "7"),
        ("/v1/feedback", {"record_id": "x", "kind": "applause", "value": 1}, 422, "applause"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(home: Path, path: str, body: Any, status: int, said: str) -> None:
    async def scene() -> httpx.Response:
        async with gateway() as client:
            return await client.post(path, content=body if isinstance(body, str) else json.dumps(body))

    answer = asyncio.run(scene())
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text
    assert rows(Interaction) == rows(Feedback) == []
