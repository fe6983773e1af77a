"""What a step of a rollout has come to: counts by arm, and the tests that tell a breach from bad luck."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from infra.rollout.sequential import Arm, Comparison
from infra.rollout.spec import RolloutSpec, Step

ARMS: tuple[Arm, ...] = ("student", "reference")
Measure = Literal["errors", "latency", "opinions"]
MEASURES: tuple[Measure, ...] = ("errors", "latency", "opinions")


@dataclass
class Counts:
    """One arm's.

    Attributes:
        last: When its last call was answered, and `last_opinion` when the last opinion on one was heard; ISO 8601.
    """

    requests: int = 0
    failed: int = 0
    opinions: int = 0
    objections: int = 0
    last: str | None = None
    last_opinion: str | None = None


@dataclass
class Tally:
    """Counts and tests of one step; JSON in the database between two calls."""

    arms: dict[Arm, Counts] = field(default_factory=lambda: {arm: Counts() for arm in ARMS})
    tests: dict[Measure, Comparison] = field(default_factory=lambda: {measure: Comparison() for measure in MEASURES})

    def answered(
        self, spec: RolloutSpec, arm: Arm, at: datetime, failed: bool, latency_ms: float, before: list[bool]
    ) -> None:
        """One call of an arm; `before` says of each earlier call of its conversation in this step whether it failed."""
        counts = self.arms[arm]
        counts.requests += 1
        counts.failed += failed
        counts.last = at.isoformat()
        if not any(before):
            self.tests["errors"].see(arm, float(failed), margin=spec.errors)
        if not before:
            self.tests["latency"].see(arm, latency_ms, factor=spec.slower)

    def judged(self, spec: RolloutSpec, arm: Arm, at: datetime, objection: bool, before: bool) -> None:
        """One opinion on an answer; `before` says whether there was an objection in its conversation already."""
        counts = self.arms[arm]
        counts.opinions += 1
        counts.objections += objection
        counts.last_opinion = at.isoformat()
        if not before:
            self.tests["opinions"].see(arm, float(objection), margin=spec.objections)

    def breach(self, spec: RolloutSpec) -> str | None:
        """What is worse than allowed, by the first test that says so; None as long as none does."""
        level = spec.alpha / (len(MEASURES) * len(spec.steps))
        for measure, test in self.tests.items():
            if test.p <= level:
                return f"{measure}: {self.compared(measure, spec)} (p {test.p:.2g}, sure enough at {level:.2g})"
        return None

    def compared(self, measure: Measure, spec: RolloutSpec) -> str:
        if measure == "latency":
            return f"the student takes over {spec.slower:g} times as long as the reference"
        student, reference = (self.arms[arm] for arm in ARMS)
        if measure == "errors":
            return (
                f"{student.failed} of the student's {student.requests} calls failed, "
                f"{reference.failed} of the reference's {reference.requests}"
            )
        return (
            f"{student.objections} of {student.opinions} opinions on the student are objections, "
            f"{reference.objections} of {reference.opinions} on the reference"
        )

    def lacks(self, step: Step, waited: float) -> str | None:
        """What the step still waits for; `waited` are the seconds since it began."""
        for arm in ARMS:
            if self.arms[arm].requests < step.requests:
                return f"{self.arms[arm].requests} of {step.requests} requests answered by the {arm}"
        if self.arms["student"].opinions < step.opinions:
            return f"{self.arms['student'].opinions} of {step.opinions} opinions on the student's answers"
        if waited < step.seconds:
            return f"{waited:.0f} of {step.seconds:.0f} s have passed"
        return None

    def heard(self, step: Step) -> str | None:
        """When something last came that the step waits for: of the arm that is quieter, or an opinion."""
        waited_for = [counts for counts in self.arms.values() if counts.requests < step.requests]
        if not waited_for and self.arms["student"].opinions < step.opinions:
            return self.arms["student"].last_opinion
        times = [counts.last for counts in waited_for or self.arms.values()]
        return None if None in times else min(time for time in times if time)

    def to_json(self) -> dict[str, Any]:
        return {
            "arms": {arm: asdict(counts) for arm, counts in self.arms.items()},
            "tests": {measure: test.to_json() for measure, test in self.tests.items()},
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Tally":
        return cls(
            {arm: Counts(**counts) for arm, counts in stored["arms"].items()},
            {measure: Comparison.from_json(test) for measure, test in stored["tests"].items()},
        )
