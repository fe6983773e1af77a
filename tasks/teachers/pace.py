"""When a request may be sent: so many a minute, and after a refusal only when it is time again."""

import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

MINUTE = 60.0
TRIES = 6
FIRST_PAUSE = 2.0  # seconds; then twice as long each time, so that TRIES outlast a limit that counts by the minute


class Pace:
    """Turns, one after the other, at even distances: endpoints often enforce "60 a minute" as "one a second".

    `now` and `rest` are all it knows of time.
    """

    def __init__(self, per_minute: int) -> None:
        self.distance = MINUTE / per_minute if per_minute else 0.0
        self._free = float("-inf")
        self._lock = threading.Lock()

    def now(self) -> float:
        return time.monotonic()

    def rest(self, seconds: float, stop: threading.Event) -> None:
        """Wait, unless there is nothing left to wait for."""
        stop.wait(seconds)

    def turn(self, stop: threading.Event) -> None:
        """Wait until a request may be sent; returns at once when `stop` is set."""
        while not stop.is_set():
            with self._lock:
                now = self.now()
                if self._free <= now:
                    self._free = now + self.distance
                    return
                left = self._free - now
            self.rest(left, stop)

    def hold(self, seconds: float) -> None:
        """Nobody's turn comes for so long: the endpoint has said when it wants to be asked again."""
        with self._lock:
            self._free = max(self._free, self.now() + seconds)


def pause(attempt: int) -> float:
    """Seconds before the next try after `attempt` failed ones: doubled each time, and random so that not all come at
    once ("equal jitter": M. Brooker, Exponential Backoff and Jitter, AWS 2015)."""
    whole = FIRST_PAUSE * 2.0 ** (attempt - 1)
    return whole / 2 + random.uniform(0, whole / 2)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint wants to be left alone (RFC 9110, section 10.2.3: seconds or a date), if it says so."""
    said = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
