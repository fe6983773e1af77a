"""Each request as the log and the counters see it: one line at its end, never what was said in it.

Every response has an id of ours in `x-request-id`; that of an answer is the answer's id as well, which feedback names.
The id that a client sends in that header, or a proxy before us, stands in the log beside it.
"""

import logging
import time
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.gateway.metrics import Metrics
from infra.gateway.record import Call

log = logging.getLogger("flywheel.requests")
CALLS = "/v1/chat/completions"
UNHEARD = ("/healthz", "/readyz", "/metrics")  # asked every few seconds, by machines
LONGEST = 128


class Watched:
    """ASGI middleware around everything; `scope["state"]["request_id"]` is the id, and `["call"]` what a call is."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state, began = scope.setdefault("state", {}), time.monotonic()
        calls = scope["path"] == CALLS and scope["method"] == "POST"
        state["request_id"] = id = f"{'chatcmpl' if calls else 'req'}-{uuid4().hex}"
        status, first = 0, None

        async def sent(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            elif first is None and message.get("body"):
                first = time.monotonic()
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            call = state.get("call") or (Call("", {}, id=id, began=began) if calls else None)
            if call:
                call.outcome = call.outcome or "refused"
                self.metrics.ended(call, first if call.body.get("stream") else None)
            if scope["path"] not in UNHEARD:
                self._line(scope, id, call, status, 1000 * (time.monotonic() - began))

    def _line(self, scope: Scope, id: str, call: Call | None, status: int, ms: float) -> None:
        told: dict[str, object] = {
            "request_id": id, "method": scope["method"], "path": scope["path"], "status": status, "ms": round(ms, 2),
        }  # fmt: skip
        if theirs := Headers(scope=scope).get("x-request-id"):
            told["client_request_id"] = theirs[:LONGEST]
        if call:
            told |= {
                "workload": call.workload, "served_by": call.served_by, "outcome": call.outcome,
                "stream": bool(call.body.get("stream")),
            }  # fmt: skip
        if log.isEnabledFor(logging.INFO):  # without `log.info`, which looks up where in the code it was called
            said = f"{scope['method']} {scope['path']}"
            log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, said, (), None, extra=told))
