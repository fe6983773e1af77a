"""Turns and pauses, in imagined time."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.teachers.pace import TRIES, pause, retry_after
from tests.tasks.teachers.server import Imagined


@given(st.integers(1, 600), st.lists(st.one_of(st.none(), st.floats(0, 200)), min_size=1, max_size=60))
def test_turns_keep_their_distance_and_heed_what_is_asked_for(per_minute: int, holds: list[float | None]) -> None:
    pace = Imagined(per_minute)
    free = 0.0
    for hold in holds:
        if hold is not None:
            pace.hold(hold)
            free = max(free, pace.now() + hold)
        pace.turn(threading.Event())
        assert pace.turns[-1] >= free - 1e-6
        free = pace.turns[-1] + 60 / per_minute
    starts = pace.turns
    assert all(late - early >= 60 - 1e-6 for early, late in zip(starts, starts[per_minute:], strict=False))


def test_nobody_waits_when_all_is_over() -> None:
    pace, stop = Imagined(1), threading.Event()
    pace.hold(1000)
    stop.set()
    pace.turn(stop)
    assert pace.rested == []


def test_pauses_double_at_random_and_outlast_a_minutes_limit() -> None:
    for attempt in range(1, TRIES):
        drawn = {pause(attempt) for _ in range(50)}
        assert 2**attempt / 2 <= min(drawn) < max(drawn) <= 2**attempt
    assert sum(2**attempt for attempt in range(1, TRIES)) >= 60


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", None), ("", None), ("nan", 0)]
)
def test_retry_after_in_seconds(said: str, seconds: float | None) -> None:
    assert retry_after(httpx.Response(429, headers={"retry-after": said})) == seconds


def test_retry_after_as_a_date() -> None:
    at = datetime.now(UTC) + timedelta(seconds=90)
    for said in (format_datetime(at, usegmt=True), format_datetime(at - timedelta(hours=1), usegmt=True)):
        found = retry_after(httpx.Response(503, headers={"retry-after": said}))
        assert found is not None and (80 <= found <= 90 if said == format_datetime(at, usegmt=True) else found == 0)
    assert retry_after(httpx.Response(503)) is None
