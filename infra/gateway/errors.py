"""Errors as a client is told them, in the form of OpenAI's API, and as the log is told them: without what was said.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

An OTLP exporter gets a `google.rpc.Status` instead. Exceptions of drivers carry the statement's parameters, those of
engines the text they choked on: the log gets the kind of an unforeseen one and its frames, never its message.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any, get_args

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.telemetry import receiver
from infra.telemetry.otlp import Signal

log = logging.getLogger("flywheel.gateway")
TELEMETRY = {f"/v1/{signal}" for signal in get_args(Signal)}


class Refused(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: Of HTTP.
        error: `{message, type, param, code}`.
        headers: That the response gets.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": code}

    def response(self, request: Request) -> Response:
        """The error as this request's client reads errors."""
        if request.url.path in TELEMETRY:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            told = receiver.refused(self.status, self.error["message"], kind)
            return Response(told.body, told.status, self.headers, told.media_type)
        return Response(json.dumps({"error": self.error}), self.status, self.headers, "application/json")


class Failed(Refused):
    """The error of whoever was asked for the answer: it is recorded as what came of the call.

    Attributes:
        model: Who it was, where that is known.
    """

    model: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The response that is recorded."""
        return {"error": self.error, **({"model": self.model} if self.model else {})}


class Told:
    """Outermost of the app: whatever goes wrong within is told in its form, and a client that has left is let go."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except ClientDisconnect:
            return
        except Refused as problem:
            refusal = problem
        except Exception as problem:
            log.error("%s %s failed: %s", scope["method"], scope["path"], trace(problem))
            refusal = Refused(500, "the gateway failed; its log says where")
        if not begun:
            await refusal.response(Request(scope))(scope, receive, send)


def trace(problem: BaseException) -> str:
    """What kind of exception it is and where it came from, without its message."""
    return f"{type(problem).__name__}\n{''.join(traceback.format_tb(problem.__traceback__))}".rstrip()
