"""Langfuse's public API: pages of observations and scores, with patience.

Lists are asked for in the version that Langfuse 4 and its cloud answer, and in the one before where that is not there.
A page says how to get the next one: by a cursor, or, in older versions, by its number.

| list         | asked first                                | else                                    |
|--------------|--------------------------------------------|-----------------------------------------|
| observations | `/api/public/v2/observations` (cursor)     | `/api/public/observations` (pages)      |
| scores       | `/api/public/v3/scores` (cursor)           | `/api/public/v2/scores` (pages)         |

Source: `fern/apis/server/definition` of github.com/langfuse/langfuse; "Migration of deprecated APIs" of its
documentation.
"""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

import httpx

from infra.settings import SetupError, settings

List = Literal["observations", "scores"]
FIELDS = "core,basic,io,metadata,model,usage,metrics,trace_context"
CALLS = {"type": "GENERATION"}
LISTS: dict[List, list[tuple[str, dict[str, str]]]] = {
    "observations": [
        ("/api/public/v2/observations", {**CALLS, "fields": FIELDS, "expandMetadata": "flywheel.workload"}),
        ("/api/public/observations", CALLS),
    ],
    "scores": [("/api/public/v3/scores", {"fields": "details,subject"}), ("/api/public/v2/scores", {})],
}
SINCE = {"observations": "fromStartTime", "scores": "fromTimestamp"}
PAGE = 100
ATTEMPTS = 6
LONGEST_WAIT = 300.0  # seconds, of a Retry-After
KEYS = "FLYWHEEL_LANGFUSE_PUBLIC_KEY and FLYWHEEL_LANGFUSE_SECRET_KEY"


class Refused(Exception):
    """The API does not know a list, or a cursor that it gave before."""


class Page(NamedTuple):
    """A page: what it lists, and the parameters of the next one; none where it is the last."""

    items: list[Any]
    next: dict[str, Any] | None


class Langfuse:
    """The API of the project that the keys belong to."""

    def __init__(self, host: str, client: httpx.Client) -> None:
        self.host, self.client = host, client
        self.versions: dict[List, int] = {}  # of the lists, once they are known

    def pages(self, which: List, wanted: Mapping[str, str], go_on: Mapping[str, Any] | None = None) -> Iterator[Page]:
        """The pages of a list, or those from `go_on` on.

        Raises:
            SetupError: The API cannot be read.
            Refused: `go_on` is not known any more.
        """
        version = int(go_on["version"]) if go_on else self.versions.get(which, 0)
        step = {key: value for key, value in (go_on or {}).items() if key != "version"}
        while True:
            path, fixed = LISTS[which][version]
            try:
                answer = self.get(path, {**fixed, **wanted, "limit": PAGE, **step})
            except Refused:
                if step or version + 1 == len(LISTS[which]):
                    raise
                version += 1
                continue
            self.versions[which] = version
            meta = answer.get("meta") or {}
            if meta.get("cursor"):
                step = {"cursor": meta["cursor"]}
            elif "cursor" not in step and meta.get("page", 1) < meta.get("totalPages", 1):
                step = {"page": meta["page"] + 1}
            else:
                step = {}
            yield Page(answer["data"], {**step, "version": version} if step else None)
            if not step:
                return

    def get(self, path: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, waited for as long as the API asks (429) or a few tries take (5xx, a broken connection)."""
        problem = ""
        for attempt in range(ATTEMPTS):
            try:
                answer = self.client.get(path, params=dict(wanted))
            except httpx.TransportError as broken:
                problem, wait = str(broken) or type(broken).__name__, backoff(attempt)
            else:
                if answer.status_code == 200:
                    return self._page(answer)
                if answer.status_code in (401, 403):
                    raise SetupError(f"Langfuse at {self.host!r} does not know the keys in {KEYS}; correct them")
                problem = f"{answer.status_code} {answer.reason_phrase}".strip()
                if answer.status_code in (400, 404):
                    raise Refused(f"{problem} for {path}")
                if answer.status_code != 429 and answer.status_code < 500:
                    break
                wait = asked_to_wait(answer.headers.get("retry-after"), backoff(attempt))
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
        raise SetupError(f"Langfuse at {self.host!r} failed ({problem}); check FLYWHEEL_LANGFUSE_HOST, or try later")

    def _page(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            page = answer.json()
        except ValueError:
            page = None
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise SetupError(
                f"what answers at {self.host!r} is no Langfuse API; name its address without a path, as in "
                "https://cloud.langfuse.com"
            )
        return page


def backoff(attempt: int) -> float:
    """Seconds: 1, 2, 4… and up to half as much more, so that readers do not come back at once."""
    return float(2**attempt) * (1 + random.random() / 2)


def asked_to_wait(said: str | None, otherwise: float) -> float:
    """Seconds of a Retry-After, which is a number or a date."""
    if not said:
        return otherwise
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return otherwise
    return min(max(0.0, seconds), LONGEST_WAIT)


@contextmanager
def connected(host: str) -> Iterator[Langfuse]:
    """The API at `host`, with the keys of the settings.

    Raises:
        SetupError: There are none.
    """
    public = settings().langfuse_public_key.get_secret_value()
    secret = settings().langfuse_secret_key.get_secret_value()
    if not public or not secret:
        raise SetupError(f"no keys for Langfuse at {host!r}; set {KEYS} (project settings, API keys)")
    try:
        with httpx.Client(base_url=host, auth=(public, secret), timeout=60) as client:
            yield Langfuse(host, client)
    except Refused as problem:
        raise SetupError(f"Langfuse at {host!r} refused ({problem}); is it version 3 or later?") from problem
