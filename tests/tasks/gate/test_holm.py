import gc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from tasks.gate.holm import holm


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """statsmodels collects garbage in each call: seconds, where other tests have left millions of objects."""
    gc.freeze()
    yield
    gc.unfreeze()


p_values = st.lists(st.floats(0, 0.2), min_size=1, max_size=12)


@given(p_values, st.integers(0, 8), st.sampled_from([0.05, 0.1]))
def test_what_is_shown_is_what_statsmodels_rejects(drawn: list[float], unseen: int, alpha: float) -> None:
    found = holm(drawn, alpha, len(drawn) + unseen)
    due = multipletests([*drawn, *[1.0] * unseen], alpha, method="holm")[0]
    assert [level.shown for level in found] == due[: len(drawn)].tolist()
    assert all((p <= level.alpha) == level.shown for p, level in zip(drawn, found, strict=True))


def test_levels_grow_from_alpha_over_the_family_and_stop_at_the_first_that_fails() -> None:
    assert [level.alpha for level in holm([0.001, 0.04, 0.02], 0.05, 3)] == pytest.approx([0.05 / 3, 0.05, 0.025])
    stopped = holm([0.001, 0.04, 0.03], 0.05, 3)
    assert [(level.shown, level.alpha) for level in stopped] == [(True, 0.05 / 3), (False, 0.025), (False, 0.025)]
    assert holm([], 0.05, 4) == []
