"""Who may write to the gateway, and how often.

Tokens. FLYWHEEL_TOKENS holds `client:token` pairs, separated by commas; a client may have several, so that a new one
can be handed out before the old one is taken back. With any set, every POST needs `Authorization: Bearer TOKEN`. What
was sent is compared as a sha256 digest with that of every token, in constant time and to the end, so that the time an
answer takes tells nothing. `python -c "import secrets; print(secrets.token_urlsafe(32))"` makes a token.

Rate. FLYWHEEL_RATE_LIMIT requests a minute for each client (by token, else by address) as a token bucket: a minute's
worth may come at once. A bucket is one number, the time at which it will be full again; a full one is forgotten, so
memory is bounded by the clients of one minute.
"""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.gateway.errors import Refused
from infra.settings import SetupError, settings
from infra.webhook import PATH as SIGNED  # its calls have a signature instead of a token

if TYPE_CHECKING:
    from infra.gateway.calls import Gateway

SHORTEST = 16
MAKE_ONE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
CLIENT, TOKEN = re.compile(r"[\w.-]{1,64}"), re.compile(r"[!-~]+")
MINUTE = 60.0


class Tokens:
    """The tokens that open the gateway; empty where it is open.

    Raises:
        SetupError: A pair is none, a token is too short or belongs to two clients. Names the client, never the token.
    """

    def __init__(self, pairs: str) -> None:
        self.known: dict[bytes, str] = {}
        for number, pair in enumerate((pair.strip() for pair in pairs.split(",") if pair.strip()), 1):
            client, _, token = pair.partition(":")
            if not CLIENT.fullmatch(client) or not TOKEN.fullmatch(token):
                raise SetupError(
                    f"FLYWHEEL_TOKENS: pair {number} is not CLIENT:TOKEN with a client of letters, digits, . _ - and "
                    f"a token of printable ASCII; make one with `{MAKE_ONE}`"
                )
            if len(token) < SHORTEST:
                raise SetupError(
                    f"FLYWHEEL_TOKENS: the token of {client!r} has {len(token)} characters, under {SHORTEST}; "
                    f"make one with `{MAKE_ONE}`"
                )
            if self.known.setdefault(_digest(token), client) != client:
                raise SetupError(f"FLYWHEEL_TOKENS: pair {number} repeats another client's token; make one for each")

    def client(self, authorization: str) -> str | None:
        """Whose token the header carries; None for nobody's."""
        scheme, _, token = authorization.partition(" ")
        given, found = _digest(token.strip()), None
        for digest, client in self.known.items():
            if hmac.compare_digest(digest, given):
                found = client
        return found if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def credentials() -> dict[str, str]:
    """Headers that open our own gateway: the first token, if there are any."""
    _, _, token = settings().tokens.get_secret_value().partition(",")[0].strip().partition(":")
    return {"authorization": f"Bearer {token}"} if token else {}


def require_tokens(host: str) -> None:
    """Raise SetupError where other machines could reach `host` and anybody could write."""
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, or "" for every address
        local = False
    if not local and not Tokens(settings().tokens.get_secret_value()).known:
        raise SetupError(
            f"FLYWHEEL_HOST {host!r} lets other machines write to the gateway, and there are no tokens; set "
            f"FLYWHEEL_TOKENS to CLIENT:TOKEN (make one with `{MAKE_ONE}`), or FLYWHEEL_HOST to 127.0.0.1"
        )


class RateLimit:
    """A token bucket for each client, of `limit` requests that refill within a minute; 0 is no limit."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self.full_at: dict[str, float] = {}  # the least recently seen client first

    def take(self, client: str) -> dict[str, str]:
        """Let one request through; the headers that say what is left.

        Raises:
            Refused: 429, with the same headers and `retry-after`.
        """
        if not self.limit:
            return {}
        now, one = self.clock(), MINUTE / self.limit
        while self.full_at and self.full_at[idle := next(iter(self.full_at))] <= now:
            del self.full_at[idle]  # whoever comes later in the order is full a minute from now at the latest
        full = max(self.full_at.pop(client, now), now)
        wait = full + one - now - MINUTE
        refused = wait > 1e-9
        self.full_at[client] = full = full if refused else full + one
        left = 0 if refused else int((MINUTE - (full - now)) / one + 1e-9)
        headers = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{full - now:.3f}s",
        }
        if refused:
            said = f"over {self.limit} requests a minute; try again in {wait:.3f} s"
            problem = Refused(
                429, said, code="rate_limit_exceeded", headers={**headers, "retry-after": str(math.ceil(wait))}
            )
            problem.error["type"] = "requests"
            raise problem
        return headers


class Door:
    """ASGI middleware before every POST: who is it, and is it their turn; `scope["state"]["client"]` is who.

    Nobody's turn comes any more once the gateway is stopping.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, rate: RateLimit, gateway: "Gateway") -> None:
        self.app, self.tokens, self.rate, self.gateway = app, tokens, rate, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.gateway.stopping:
            again = {"retry-after": "1", "connection": "close"}
            raise Refused(503, "the gateway is stopping; try again", code="stopping", headers=again)
        client = None
        if self.tokens.known and scope["path"] != SIGNED:
            client = self.tokens.client(Headers(scope=scope).get("authorization", ""))
            if client is None:
                raise Refused(
                    401, "a token is needed: Authorization: Bearer TOKEN, with one of those in FLYWHEEL_TOKENS",
                    code="invalid_api_key", headers={"www-authenticate": "Bearer"},
                )  # fmt: skip
        scope.setdefault("state", {})["client"] = client
        left = self.rate.take(client or (scope.get("client") or ("",))[0])
        if not left:
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(left)
            await send(message)

        await self.app(scope, receive, sent)
