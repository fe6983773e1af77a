"""What pictures are drawn with: ticks, scales, places for labels, and text that stays text."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report import numbers
from tasks.report.pen import Box, Picture, Scale, clipped, free_place, log_ticks, seen, ticks

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@given(VALUES, st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_few_in_order_and_inside(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert found and len(found) <= most and found == sorted(found)
    assert low - 1e-6 * span <= found[0] and found[-1] <= low + span * (1 + 1e-6)


@given(st.floats(1e-3, 1e9), st.floats(1.05, 1e6), st.integers(2, 8))
def test_ticks_of_a_logarithm_are_few_in_order_and_inside(low: float, times: float, most: int) -> None:
    found = log_ticks(low, low * times, most)
    assert found and len(found) <= most and found == sorted(set(found))
    assert low * (1 - 1e-6) <= found[0] and found[-1] <= low * times * (1 + 1e-6)


def test_a_scale_takes_ends_to_ends() -> None:
    up = Scale(1, 100, 200, 0, log=True)
    assert (up(1), up(10), up(100)) == (200, pytest.approx(100), 0) and Scale(3, 3, 0, 10)(3) == 5


@given(st.lists(st.tuples(st.floats(50, 350), st.floats(50, 250)), min_size=1, max_size=6))
def test_a_label_goes_where_there_is_room(points: list[tuple[float, float]]) -> None:
    room = Box(0, 0, 400, 300)
    box = free_place(points[0], 80, 15, [], room)
    assert box.overlap(room) == pytest.approx(80 * 15)
    other = free_place(points[0], 80, 15, [box], room)
    assert other.overlap(box) < 1


@given(st.text(max_size=60))
def test_whatever_is_written_is_a_document_that_says_it(text: str) -> None:
    picture = Picture(100, 100)
    picture.text(1, 1, text)
    picture.dot(1, 1, 1, "mark", text)
    root = ElementTree.fromstring(str(picture.svg(text)))
    assert len(root) == 2 and "".join(root[0].itertext()) == seen(text).replace("\r\n", "\n").replace("\r", "\n")
    assert clipped(text, 20) == clipped(clipped(text, 20), 20) and len(clipped(text, 20)) <= 20


@pytest.mark.parametrize(("said", "shown"), [
    (numbers.size(3_020_000), "3.02 MB"), (numbers.size(999_600), "1,000 kB"), (numbers.size(None), "–"),
    (numbers.ms(9.4), "9.4 ms"), (numbers.ms(1234.0), "1.23 s"), (numbers.points(-0.0154), "−1.5"),
    (numbers.percent(0.954), "95.4 %"), (numbers.times(0.301), "0.30×"), (numbers.dollars(0.0123), "$0.0123"),
])  # fmt: skip
def test_numbers_as_they_are_read(said: str, shown: str) -> None:
    assert said == shown
