"""The loss on its way down, as few points: each the mean over as many steps."""

from dataclasses import dataclass, field

POINTS = 200


@dataclass
class Curve:
    """A loss by step.

    Attributes:
        every: Steps that a point is the mean of.
        points: [step, loss] each, the step the last of its mean.
        begun: The losses of the point that is not whole yet.
    """

    every: int = 1
    points: list[list[float]] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, steps: int) -> "Curve":
        return cls(max(1, -(-steps // POINTS)))

    def note(self, step: int, loss: float) -> None:
        self.begun.append(loss)
        if step % self.every == 0:
            self.points.append([step, round(sum(self.begun) / len(self.begun), 6)])
            self.begun = []
