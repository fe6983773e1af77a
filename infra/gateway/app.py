"""The gateway: an OpenAI-compatible endpoint that answers, records every call, and takes feedback.

    POST /v1/chat/completions   the champion of the workload answers; without one, where the request does not begin with
                                the prefix that the champion was trained on, or where it abstains, the teacher does
    POST /v1/feedback           {"record_id", "kind": thumb | rating | correction | preference | label, "value"}, where
                                record_id is the id of the answer; 202 where it is kept in the spool for now
    POST /v1/traces, /v1/logs   OpenTelemetry (OTLP/HTTP): calls of models, and evaluations of them
    POST /v1/registry           MLflow's webhook: an alias was moved (`moved.py`); 401 unless MLflow has signed it
    GET  /v1/models             which workloads are served, by which version, and which is on its way (`rollouts.py`)
    GET  /healthz               200 while the process lives
    GET  /readyz                200 while calls are welcome: they can be recorded, and somebody can answer; 503 with the
                                reason where not, and from SIGTERM on (`server.py`)
    GET  /metrics               for Prometheus (`metrics.py`)

The workload is the request's `model`, or the header `x-flywheel-workload`. What is recorded is what the next turn of
the wheel learns from; `calls.py` says what becomes of which call, `record.py` and `spool.py` where it is kept.

What is only read is open to whoever reaches the port, the counters too, as a scraper and a kubelet expect: it says how
much is asked of which workload, and never what. Whoever writes needs a token if there are any (FLYWHEEL_TOKENS), and
they are needed to listen beyond this machine; `access.py` has them and the rate limit, `body.py` the limit of what may
be sent. The token's client is the record's `client_id`; the header `x-flywheel-client` names the end user,
`CLIENT/USER` then, or `USER` where there are no tokens.
Mistakes are told in the form of OpenAI's API (`errors.py`): 400 no such request, 401 no token, 404 and 405 no such
address, 409 the id of another feedback, 413 too large, 422 no feedback, 429 too often, 502 and 504 the teacher's, 503
nobody to answer, nowhere to keep it, or stopping.
"""

from datetime import UTC, datetime
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from infra import webhook
from infra.database import records
from infra.database.jsontext import Rejected
from infra.database.messages import normalized_request
from infra.engines import Engine
from infra.gateway import body
from infra.gateway.access import Door, RateLimit, Tokens
from infra.gateway.calls import Gateway
from infra.gateway.errors import Refused, Told
from infra.gateway.moved import Moved, Redeploy
from infra.gateway.record import Call
from infra.gateway.spool import SOURCE
from infra.gateway.watched import CALLS, Watched
from infra.settings import settings
from infra.telemetry.otlp import Signal
from infra.telemetry.receiver import receive


class App(FastAPI):
    """FastAPI for everything but calls: its own way to them takes a third of the time that the gateway takes.

    Attributes:
        calls: What answers a POST of CALLS, within the same layers as the rest.
    """

    calls: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == CALLS:
            await self.calls(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(teacher: Engine | str | None = None, redeploy: Redeploy | None = None) -> FastAPI:
    """The gateway with a teacher behind it: a loaded engine, which it closes at its end, an endpoint's URL, or none.

    `redeploy` begins that flow where a person has moved the alias; without it the gateway serves what it says, no more.

    Raises:
        SetupError: FLYWHEEL_TOKENS cannot be read.
    """
    gateway = Gateway(teacher)
    moved = Moved(redeploy)
    exporters = CapacityLimiter(8)  # those that wait for a locked database leave the engines their threads
    app = App(title="Flywheel gateway", lifespan=gateway.running, docs_url="/docs")
    app.state.gateway = gateway
    tokens = Tokens(settings().tokens.get_secret_value())
    door = {"tokens": tokens, "rate": RateLimit(settings().rate_limit), "gateway": gateway}
    layers: list[tuple[Any, dict[str, Any]]] = [(Door, door), (Told, {}), (Watched, {"metrics": gateway.metrics})]

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> Response:
        said = f"{problem.detail}: {request.method} {request.url.path}"
        return Refused(problem.status_code, said, headers=problem.headers).response(request)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, problem: RequestValidationError) -> Response:
        return Refused(422, str(problem.errors()[0]["msg"])).response(request)

    async def complete(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method != "POST":
            raise Refused(405, f"Method Not Allowed: {request.method} {CALLS}", headers={"allow": "POST"})
        request.state.call = call = call_of(request, await body.asked(request))
        answer = await gateway.complete(call, request.headers.get("authorization", ""))
        await answer(scope, receive, send)

    app.calls = complete
    for layer, needs in layers:
        app.calls = layer(app.calls, **needs)
        app.add_middleware(layer, **needs)

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        record = feedback_of(await body.asked(request))
        fate, reason = await gateway.recorder.fate(record)
        if fate == "quarantined":
            raise Refused(409, reason)
        if fate == "lost":
            raise Refused(503, "nothing can be recorded now; try again", headers={"retry-after": "1"})
        gateway.metrics.feedback.labels(record["kind"]).inc()
        return JSONResponse({"id": record["id"]}, 202 if fate == "spooled" else 200)

    @app.post("/v1/traces")
    async def traces(request: Request) -> Response:
        return await telemetry(request, "traces")

    @app.post("/v1/logs")
    async def logs(request: Request) -> Response:
        return await telemetry(request, "logs")

    async def telemetry(request: Request, signal: Signal) -> Response:
        kind, encoding = (request.headers.get(f"content-{name}", "") for name in ("type", "encoding"))
        raw = await body.read(request)
        answer = await to_thread.run_sync(receive, raw, signal, kind, encoding, limiter=exporters)
        return Response(answer.body, answer.status, media_type=answer.media_type)

    @app.post(webhook.PATH)
    async def registry_moved(request: Request) -> dict[str, Any]:
        return await to_thread.run_sync(moved.receive, request.headers, await body.read(request))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return gateway.models()

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readiness() -> JSONResponse:
        reason = gateway.ready()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = await to_thread.run_sync(gateway.metrics.text, gateway)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return app


def call_of(request: Request, asked: dict[str, Any]) -> Call:
    """The call that a request makes. Raises Refused where it makes none."""
    told = {name: request.headers.get(f"x-flywheel-{name}") for name in ("workload", "conversation", "client")}
    if not isinstance(asked.get("model"), str) or not asked["model"]:
        raise Refused(400, "model: the name of the workload is needed")
    try:
        known = records.name({"x-flywheel-workload": told["workload"], **asked}, "x-flywheel-workload", "model")
        records.name(told, "conversation"), records.name(told, "client")
        normalized = normalized_request(asked)
    except Rejected as problem:
        raise Refused(400, str(problem)) from problem
    client = "/".join(part for part in (request.state.client, told["client"]) if part)
    return Call(known or asked["model"], normalized, client or None, told["conversation"], request.state.request_id)


def feedback_of(asked: dict[str, Any]) -> dict[str, Any]:
    """Feedback as it is recorded, with its id and its time. Raises Refused for what is none."""
    now = datetime.now(UTC)
    try:
        row = records.feedback(asked, source=SOURCE, at=now)
    except Rejected as problem:
        raise Refused(422, str(problem)) from problem
    given = asked.get("timestamp")
    return {**asked, "id": row.external_id, "timestamp": now.isoformat() if given is None else given}
