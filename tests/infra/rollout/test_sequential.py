"""The test that decides a rollout: how often it is wrong when it is looked at after every request, and how soon right.

Each simulated rollout is watched until its end: an alarm at any time is an alarm.
"""

import math
from collections.abc import Iterator
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from infra.rollout.sequential import BETS, OPEN, Arm, Comparison, difference, slower

WORLDS, ALPHA = 1000, 0.05
# The share of false alarms that a true share of ALPHA comes to in WORLDS worlds, but for one time in a thousand.
SHOWN = ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / WORLDS)


def arms(rng: Random, weight: float) -> Iterator[Arm]:
    while True:
        yield "student" if rng.random() < weight else "reference"


def alarms(worst: list[float]) -> float:
    """The share of worlds in which the smallest p-value was under ALPHA at any look."""
    return sum(p <= ALPHA for p in worst) / len(worst)


def errors(rng: Random, weight: float, student: float, reference: float, margin: float, requests: int = 600) -> float:
    test = Comparison()
    for arm, _ in zip(arms(rng, weight), range(requests), strict=False):
        test.see(arm, float(rng.random() < (student if arm == "student" else reference)), margin=margin)
    return test.p


def test_a_student_that_is_as_bad_as_allowed_is_undone_at_most_as_often_as_alpha_says() -> None:
    for weight in (0.05, 0.5, 0.9):
        for reference, margin in ((0.01, 0.02), (0.3, 0.05)):
            rng = Random(f"{weight}:{reference}")
            worst = [errors(rng, weight, reference + margin, reference, margin) for _ in range(WORLDS)]
            assert alarms(worst) <= SHOWN, (weight, reference)


def test_a_time_of_day_when_everything_fails_is_nobodys_fault() -> None:
    """The rates move together, as an outage behind both makes them; a bound of each arm's mean would be fooled."""

    def world(rng: Random) -> float:
        test = Comparison()
        for n, arm in zip(range(600), arms(rng, 0.1), strict=False):
            test.see(arm, float(rng.random() < (0.6 if 200 <= n < 400 else 0.02)))
        return test.p

    rng = Random(3)
    assert alarms([world(rng) for _ in range(WORLDS)]) <= SHOWN


def latencies(rng: Random, weight: float, times: float, factor: float = 1.5, requests: int = 400) -> float:
    """Log-normal, with the tail that latencies have; the student's are `times` as long."""
    test = Comparison()
    for arm, _ in zip(arms(rng, weight), range(requests), strict=False):
        test.see(arm, 200 * rng.lognormvariate(0, 1) * (times if arm == "student" else 1), factor=factor)
    return test.p


def test_a_student_that_is_as_slow_as_allowed_is_undone_at_most_as_often_as_alpha_says() -> None:
    for weight in (0.1, 0.5):
        rng = Random(f"{weight}")
        assert alarms([latencies(rng, weight, times=1.5) for _ in range(WORLDS)]) <= SHOWN


def until_alarm(rng: Random, student: float, reference: float, margin: float, level: float) -> int:
    """How many of its calls a student has answered until it is caught, at a tenth of the traffic."""
    test, answered = Comparison(), 0
    for arm in arms(rng, 0.1):
        answered += arm == "student"
        test.see(arm, float(rng.random() < (student if arm == "student" else reference)), margin=margin)
        if test.p <= level:
            return answered
    raise AssertionError


def test_a_student_that_breaks_is_caught_soon() -> None:
    """At the level of a rollout of three steps with the default alpha."""
    rng, level = Random(1), 0.05 / 9
    assert max(until_alarm(rng, 1.0, 0.0, 0.02, level) for _ in range(50)) <= 12
    tenth = sorted(until_alarm(rng, 0.15, 0.01, 0.02, level) for _ in range(50))
    assert tenth[25] < 150
    slow = [latencies(rng, 0.1, times=4, requests=1500) for _ in range(50)]
    assert sum(p <= level for p in slow) >= 48


observations = st.lists(st.tuples(st.sampled_from(["student", "reference"]), st.floats(0, 1)), max_size=80)


@given(observations, st.floats(0, 0.9))
def test_evidence_only_grows_and_survives_the_database(seen: list[tuple[Arm, float]], margin: float) -> None:
    test, before = Comparison(), 1.0
    for arm, value in seen:
        test = Comparison.from_json(test.to_json())
        test.see(arm, value, margin=margin)
        assert 0 < test.p <= before
        before = test.p
    assert test.blocks <= min(sum(arm == side for arm, _ in seen) for side in ("student", "reference"))


@given(st.floats(0.01, 0.99), st.integers(1, 30))
def test_wealth_is_a_fair_game_at_the_limit(most: float, bets: int) -> None:
    """A coin with values 0 and 1 and mean `most`: the mean of the wealth over all outcomes stays 1, for each bet."""
    for n in range(len(BETS)):
        total = 0.0
        for heads in range(bets + 1):
            test = Comparison()
            for value in [1.0] * heads + [0.0] * (bets - heads):
                test.bet(value, most)
            chance = math.comb(bets, heads) * most**heads * (1 - most) ** (bets - heads)
            total += chance * math.exp(test.wealth[n])
        assert math.isclose(total, 1, rel_tol=1e-6)


def test_a_block_is_the_mean_of_all_that_came_since_the_last() -> None:
    assert difference([1], [0, 1, 0, 0]) == 0.875 and difference([0, 0], [1]) == 0
    assert slower([100], [10, 99, 100, 200], 1) == 0.625
    test = Comparison()
    for _ in range(OPEN + 10):
        test.see("reference", 0)
    assert test.blocks == 0 and len(test.open["reference"]) == OPEN
    test.see("student", 0)
    assert test.blocks == 1 and not test.open["reference"]
