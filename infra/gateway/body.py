"""The body of a request, no larger than FLYWHEEL_BODY_LIMIT_MB, and the JSON object in it."""

import json
import re
from typing import Any

from starlette.requests import Request

from infra.database.jsontext import Rejected, loads
from infra.database.messages import kind
from infra.gateway.errors import Refused
from infra.settings import settings

DEEPEST = 128  # levels; Python's own JSON gives up near 1,000, sooner the deeper the stack it runs on
HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


async def read(request: Request) -> bytes:
    """All of the body, of which never more than the limit is held.

    Raises:
        Refused: 413, as soon as the header or what has come so far says so.
    """
    limit = settings().body_limit_mb << 20
    told = request.headers.get("content-length", "0")
    if len(told) > 18 or (told.isdecimal() and int(told) > limit):
        raise _too_large(limit)
    held = bytearray()
    async for piece in request.stream():
        if len(held) + len(piece) > limit:
            raise _too_large(limit)
        held += piece
    return bytes(held)


def _too_large(limit: int) -> Refused:
    return Refused(
        413, f"the body is over {limit} bytes; send less, or raise FLYWHEEL_BODY_LIMIT_MB", code="request_too_large"
    )


def document(raw: bytes) -> dict[str, Any]:
    """A JSON object that can be stored and passed on.

    Raises:
        Rejected: It is none, is nested too deeply, or has half of a surrogate pair, which is no text.
    """
    said = loads(raw)
    if not isinstance(said, dict):
        raise Rejected(f"no JSON object: it is {kind(said)}")
    if raw.count(b"{") + raw.count(b"[") > DEEPEST:
        _require_shallow(said)
    if HALF_A_PAIR.search(raw):
        try:
            json.dumps(said, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            raise Rejected("no JSON: half of a surrogate pair (\\ud800 to \\udfff) stands alone") from problem
    return said


def _require_shallow(said: dict[str, Any]) -> None:
    level: list[Any] = [said]
    for _ in range(DEEPEST):
        level = [below for one in level for below in (one.values() if isinstance(one, dict) else one)]
        level = [below for below in level if isinstance(below, dict | list)]
        if not level:
            return
    raise Rejected(f"no JSON: nested over {DEEPEST} levels deep")


async def asked(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        Refused: 400 where it carries none, 413 where it is too large.
    """
    raw = await read(request)
    try:
        return document(raw)
    except Rejected as problem:
        raise Refused(400, f"the body is no JSON object that can be read: {problem}") from problem
