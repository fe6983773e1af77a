"""Cost: USD for 1,000 requests, by the hour of a machine that answers or by the price of an endpoint's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

HOUR, MILLION = 3600, 1e6
Price = Annotated[float | None, Field(ge=0)]


@dataclass(frozen=True)
class Prices:
    """What is paid, in USD; without a price there is no cost.

    Attributes:
        machine_hour: Of the machine that the scorecard is made on, kept busy.
        prompt, completion: A million tokens of the teacher's, where it is an endpoint.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    machine_hour: Annotated[Price, Field(description="USD an hour of the machine that answers")] = None
    prompt: Annotated[Price, Field(description="USD for a million tokens of the teacher endpoint's prompts")] = None
    completion: Annotated[Price, Field(description="USD for a million tokens of its answers")] = None

    def by_hour(self, seconds_per_request: float) -> float | None:
        return None if self.machine_hour is None else 1000 * seconds_per_request * self.machine_hour / HOUR

    def by_token(self, used: Sequence[tuple[int | None, int | None]]) -> float | None:
        """For 1,000 requests such as these, of prompt and completion tokens each; None where any is not known."""
        if self.prompt is None or self.completion is None or not used:
            return None
        spent = 0.0
        for prompt, completion in used:
            if prompt is None or completion is None:
                return None
            spent += prompt * self.prompt + completion * self.completion
        return 1000 * spent / MILLION / len(used)
