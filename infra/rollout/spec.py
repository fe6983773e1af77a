"""How a version gets to serve: at once, or by steps that it has to stand."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field


@dataclass(frozen=True)
class Step:
    """A share of the traffic, and what has to be seen of it before the next step."""

    weight: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of conversations that the student answers; 0: shadow, nobody is sent it"),
    ]
    requests: Annotated[int, Field(ge=1, description="Requests that each of the two has to answer")] = 100
    seconds: Annotated[float, Field(ge=0, description="The least time that the step takes")] = 0.0
    opinions: Annotated[int, Field(ge=0, description="Opinions on the student's answers that have to come")] = 0

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class RolloutSpec:
    """Steps to full service, and what undoes them: a breach of what is allowed, silence, or missing data."""

    steps: Annotated[
        tuple[Step, ...], Field(description="Shadow and canary, before it serves all; without any it does at once")
    ] = ()
    alpha: Annotated[float, Field(gt=0, le=0.5, description="Chance to undo the rollout of a good student")] = 0.05
    errors: Annotated[float, Field(ge=0, lt=1, description="By how much more of the student's calls may fail")] = 0.02
    slower: Annotated[float, Field(gt=0, description="How many times as long the student may take")] = 1.5
    objections: Annotated[
        float, Field(ge=0, lt=1, description="By how much more of the opinions on the student may be objections")
    ] = 0.05
    timeout: Annotated[
        float, Field(gt=0, description="Seconds after which the student has failed, and the reference is asked")
    ] = 60.0
    silence: Annotated[
        float, Field(gt=0, description="Seconds without what a step waits for, after which it is undone")
    ] = 3600.0

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError(f"the weights of a rollout's steps are {weights}; each has to be over the one before")

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "RolloutSpec":
        return cls(**{**stored, "steps": tuple(Step(**step) for step in stored["steps"])})
