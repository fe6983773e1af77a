"""Is the student worse? A test that may be looked at after every request, for as long as one likes.

**What is compared.** Errors, latency and opinions arrive one by one, from two arms that answer at the same time. A
block ends as soon as both have something new; it becomes one value V in [0, 1] that is m at most, on average, while the
student is no worse than is allowed:

    errors, objections (0 or 1):  V = (1 + mean of the student's - mean of the reference's) / 2,   m = (1 + margin) / 2
    latency (ms):                 V = share of pairs where the student takes over `factor` times as long,   m = 1/2

Each observation is used in one block, and both sides of a block are of the same minutes: a bad hour of the network, or
of the day, is in both. Latency is compared by its ranks, so no bound and no distribution of it is assumed, and one
answer of a minute weighs as much as one of a second: the mean of heavy tails is nothing that a few hundred requests
could tell.

**The test.** Under the null hypothesis, E[V_t | what came before] <= m for all t, each

    K_t(l) = prod_{i <= t} (1 + l (V_i - m)),      0 <= l < 1/m

is a nonnegative supermartingale that begins at 1: the wealth of somebody who bets the share l m of it on V > m, again
and again. So is K_t, its mean over a few l, and by Ville's inequality P(exists t: K_t >= 1/alpha) <= alpha. Whoever
stops and decides at the first K_t >= 1/alpha is wrong in at most alpha of all rollouts, however often he looks; the
largest K so far gives an always-valid p-value, p_t = 1 / max_{i <= t} K_i (Johari, Pekelis, Walsh 2015, arXiv
1512.04922, section 4). The bets are those of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (2020, arXiv 2010.09686), section 4: exact for every distribution on [0, 1] and every t, with no asymptotics.
The mean over a grid of l (their section B.4) is within log(len(BETS)) of the best of them in hindsight and needs no
estimate of a variance.

**Conversations.** Calls of one conversation fail together, and then what came before does say more than the margin: a
conversation that is doomed would be counted at each of its turns. So it is followed to its first bad call and no
further, in both arms alike (`tally.py`): what is compared are the rates at which conversations go bad. Latency is that
of a conversation's first call in a step.

**Several measures and steps.** Each of the S steps has tests of its own for M = 3 measures, at alpha / (M S): a rollout
is undone by mistake with a probability of alpha at most (Bonferroni). Wealth that was lost in a good step is not missed
in the next, where a student may break under its load.

**Rejected.** mSPRT with a normal mixture (Johari et al., section 3): its variance is estimated, and at error rates near
zero that is far off. An always-valid bound of each arm, one against the other: needs about twice the requests, since
both bounds have to be paid for. Inverse propensity weights by the canary's share: at 5 % each of the student's calls
weighs 20, and a conversation that stays with its arm is no fresh draw. Looking at fixed times only (group sequential):
a breach waits for the next look, and requests with it.

`tests/infra/rollout/test_sequential.py` counts the false alarms by simulation, at the margin and with doomed
conversations, and says how soon a student that breaks is caught.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Arm = Literal["student", "reference"]
# Shares of the wealth that are bet: the large ones notice what breaks, the small ones what is a little worse.
BETS = (0.95, 0.5, 0.25, 0.12, 0.06, 0.03)
# Observations of one arm that a block holds: the rest of a long wait for the other adds next to nothing.
OPEN = 64


@dataclass
class Comparison:
    """The test of one measure, between one observation and the next.

    Attributes:
        open: By arm, what has come since the last block, at most OPEN.
        wealth: Logarithms of K_t(l), by BETS.
        blocks: How many values V there were.
        p: The always-valid p-value that the student is no worse.
    """

    open: dict[Arm, list[float]] = field(default_factory=lambda: {"student": [], "reference": []})
    wealth: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    blocks: int = 0
    p: float = 1.0

    def see(self, arm: Arm, observed: float, *, margin: float = 0.0, factor: float | None = None) -> None:
        """Take one observation.

        Args:
            observed: 0 or 1; milliseconds where there is a factor.
            margin: By how much more of the student's may be 1.
            factor: How many times as long the student may take.
        """
        if len(self.open[arm]) < OPEN:
            self.open[arm].append(observed)
        if self.open["student"] and self.open["reference"]:
            student, reference = self.open["student"], self.open["reference"]
            if factor is None:
                self.bet(difference(student, reference), (1 + margin) / 2)
            else:
                self.bet(slower(student, reference, factor), 0.5)
            self.open = {"student": [], "reference": []}

    def bet(self, value: float, most: float) -> None:
        """One value in [0, 1], which is `most` at most on average under the null hypothesis."""
        self.wealth = [w + math.log1p(bet / most * (value - most)) for w, bet in zip(self.wealth, BETS, strict=True)]
        self.blocks += 1
        top = max(self.wealth)
        held = top + math.log(sum(math.exp(w - top) for w in self.wealth) / len(BETS))
        self.p = min(self.p, math.exp(-held)) if held > 0 else self.p

    def to_json(self) -> dict[str, Any]:
        return {"open": self.open, "wealth": self.wealth, "blocks": self.blocks, "p": self.p}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Comparison":
        return cls(**stored)


def difference(student: Sequence[float], reference: Sequence[float]) -> float:
    """How much more of the student's is 1, from [-1, 1] to [0, 1]."""
    return (1 + sum(student) / len(student) - sum(reference) / len(reference)) / 2


def slower(student: Sequence[float], reference: Sequence[float], factor: float) -> float:
    """The share of pairs in which the student takes over `factor` times as long; half of those that are even."""
    scores = [(mine > factor * theirs) + 0.5 * (mine == factor * theirs) for mine in student for theirs in reference]
    return sum(scores) / len(scores)
