import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.gate.proportions import effective, needed, tango, wilson


def test_tango_gives_the_published_numbers() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al., 2009), as in M. W.
    # Fagerland, S. Lydersen, P. Laake, BMC Med. Res. Methodol. 13, 2013 and R's contingencytables: -0.517 to -0.026.
    assert tango(1, 7, 21, 0.975) == pytest.approx((-0.517, -0.026), abs=5e-4)
    # R: PropCIs::scoreci.mp(25, 28, 618, conf.level = 0.90), which estimates (c - b) / n.
    assert tango(28, 25, 618, 0.95) == pytest.approx((-0.0148, 0.0247), abs=5e-5)


def test_tango_without_a_disagreement_is_the_score_bound_of_zero_losses() -> None:
    z2 = 1.6448536269514722**2
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)


@pytest.mark.parametrize("won, lost, n", [(0, 3, 60), (3, 0, 60), (5, 9, 120), (1, 7, 21), (40, 20, 160), (10, 10, 20)])
def test_tango_is_the_inversion_of_the_score_test(won: int, lost: int, n: int) -> None:
    """Oracle: the constrained likelihood maximised on a fine grid, the test inverted on another."""

    def statistic(difference: float) -> float:
        low, high = max(0.0, -difference), (1 - difference) / 2
        grid = [low + (high - low) * i / 4000 for i in range(1, 4000)]

        def likelihood(q: float) -> float:
            shares = ((won, q + difference), (lost, q), (n - won - lost, 1 - 2 * q - difference))
            return sum(count * math.log(share) if share > 0 else -math.inf for count, share in shares if count)

        q = max(grid, key=likelihood)
        return (won - lost - n * difference) / math.sqrt(n * (2 * q + difference - difference**2))

    low, high = tango(won, lost, n)
    assert statistic(low) == pytest.approx(1.645, abs=0.02)
    assert statistic(high) == pytest.approx(-1.645, abs=0.02)


@pytest.mark.parametrize(
    "n, only_reference, only_candidate", [(400, 0.05, 0.02), (400, 0.01, 0.01), (1000, 0.035, 0.005)]
)
def test_tango_misses_about_five_percent_on_each_side(n: int, only_reference: float, only_candidate: float) -> None:
    """Exact coverage: every table, weighed by its probability."""
    truth = only_candidate - only_reference
    rest = 1 - only_candidate - only_reference
    missed = [0.0, 0.0]
    likely = [
        range(int(n * p - 6 * math.sqrt(n * p) - 1), int(n * p + 6 * math.sqrt(n * p) + 8))
        for p in (only_candidate, only_reference)
    ]
    for won, lost in product(*likely):
        if won < 0 or lost < 0:
            continue
        log = math.lgamma(n + 1) - math.lgamma(won + 1) - math.lgamma(lost + 1) - math.lgamma(n - won - lost + 1)
        log += won * math.log(only_candidate) + lost * math.log(only_reference) + (n - won - lost) * math.log(rest)
        if log > -14:
            low, high = tango(won, lost, n)
            missed[0] += math.exp(log) * (low > truth)
            missed[1] += math.exp(log) * (high < truth)
    assert missed == pytest.approx([0.05, 0.05], abs=0.012)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_tango_is_antisymmetric_and_holds_the_estimate(drawn: tuple[int, int, int]) -> None:
    n, won, lost = drawn[0], min(drawn[1:]) // 2, max(drawn[1:]) // 2
    low, high = tango(won, lost, n)
    assert low - 1e-9 <= (won - lost) / n <= high + 1e-9
    assert tango(lost, won, n) == pytest.approx((-high, -low), abs=1e-9)


def test_wilson_gives_the_published_numbers() -> None:
    # R. G. Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_conversation_is_worth_one_observation() -> None:
    assert effective(["a", "b", "c", "d"]) == 4
    assert effective(["a", "a", "b", "b"]) == 2
    assert effective(["a", "a", "a", "b"]) == pytest.approx(1.6)
    assert effective([]) == 0


def test_needed_is_where_the_bound_begins_to_hold() -> None:
    more = needed(3, 6, 200, 0.03)
    assert more is not None and more > 200
    at, before = more / 200, (more - 3) / 200
    assert tango(3 * at, 6 * at, 200 * at)[0] > -0.03 - 1e-4
    assert tango(3 * before, 6 * before, 200 * before)[0] <= -0.03
    assert needed(0, 6, 200, 0.03) is None  # 3 points worse already: no number of items helps
