"""What a stage has asked of its teacher, what it cost, and when that is enough."""

from dataclasses import dataclass, field
from typing import Any, Literal

from infra.settings import SetupError
from tasks.teachers.answers import GIVEN_UP, Answer

MILLION = 1e6


class BudgetSpent(SetupError):
    """A stage has spent what it may; trying it again would spend that again."""


@dataclass
class Tally:
    """Answers and tokens of one stage; prices in USD per million tokens.

    Prompt tokens count in full, also those that an endpoint has cached and sells for less: what is said to be spent is
    never too little.

    Attributes:
        budget: USD; 0 is no limit.
        recalled: Answers that were there already.
        asked: Answers that were asked for.
        failed: Questions in a row, up to the last, that were given up.
        refused: Questions that the teacher would not answer.
        reasons: How often which reason stood in the place of an answer.
        dearest: The dearest answer so far, in USD; None before the first.
        role: Whose it is.

    Raises:
        SetupError: There is a budget, and no price.
    """

    prompt_price: float = 0
    completion_price: float = 0
    budget: float = 0
    recalled: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0
    dearest: float | None = None
    refused_logprobs: bool = False
    failed: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    role: Literal["teacher", "judge"] = "teacher"

    @property
    def option(self) -> str:
        """Where its budget is set."""
        return "FLYWHEEL_TEACHER_BUDGET" if self.role == "teacher" else "the judge's `budget`"

    def __post_init__(self) -> None:
        if self.budget and not (self.prompt_price or self.completion_price):
            prices = "`prompt_price` and `completion_price`"
            if self.role == "teacher":
                prices = "FLYWHEEL_TEACHER_PROMPT_PRICE and FLYWHEEL_TEACHER_COMPLETION_PRICE"
            raise SetupError(
                f"{self.option} is {self.budget:g} USD, and no price is known; set {prices}, USD per million tokens"
            )

    def room(self, under_way: int) -> bool:
        """Whether one more may be asked while others are under way, if none is dearer than the dearest so far.

        The first answer is waited for: before it nobody knows what one costs.
        """
        if not self.budget:
            return True
        if self.dearest is None:
            return under_way == 0
        return self.cost + (under_way + 1) * self.dearest <= self.budget * (1 + 1e-9)

    def add(self, answer: Answer) -> None:
        """Count an answer that was asked for.

        Raises:
            SetupError: It does not say how many tokens it took, and there is a budget to keep.
        """
        if answer.message is None:
            self.reasons[answer.reason] = self.reasons.get(answer.reason, 0) + 1
            self.failed = self.failed + 1 if answer.reason == GIVEN_UP else 0
            self.refused += answer.reason != GIVEN_UP
            return
        self.asked, self.failed = self.asked + 1, 0
        if self.budget and (answer.prompt_tokens is None or answer.completion_tokens is None):
            raise SetupError(
                f"the {self.role}'s answers have no `usage`, so nobody knows what they cost; "
                f"set {self.option} to 0 to ask without a limit"
            )
        prompt, completion = answer.prompt_tokens or 0, answer.completion_tokens or 0
        cost = (prompt * self.prompt_price + completion * self.completion_price) / MILLION
        self.prompt_tokens, self.completion_tokens = self.prompt_tokens + prompt, self.completion_tokens + completion
        self.cost += cost
        self.dearest = max(self.dearest or 0, cost)

    def spent(self) -> BudgetSpent:
        return BudgetSpent(
            f"the {self.role}'s budget of {self.budget:g} USD a stage does not reach for another request: {self.asked} "
            f"answers cost {self.cost:.4g} USD and are kept; run again to go on, or raise {self.option}"
        )

    def report(self) -> dict[str, Any]:
        """What was asked now, and what was known; cost where prices are given."""
        told: dict[str, Any] = {"asked": self.asked, "recalled": self.recalled}
        told |= {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        if self.prompt_price or self.completion_price:
            told["cost_usd"] = round(self.cost, 6)
        if self.refused_logprobs:
            told["logprobs"] = "refused by the endpoint"
        return told | ({"unanswered": dict(sorted(self.reasons.items()))} if self.reasons else {})
