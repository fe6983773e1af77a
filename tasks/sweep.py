"""Several students of one dataset: options and seeds to try, and which of them is best.

The best is found by the validation split, never by the holdout: of the options those with the lowest mean loss over the
seeds, of their students the one with the lowest loss. Chosen by its loss alone, the luckiest seed would win among many.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import mean, stdev
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from infra.settings import SetupError
from tasks.students import Causal, Classifier

# What the loss is counted in changes with these, or the rows it is counted on.
APART = {
    "name": "kinds of students",
    "base": "bases, whose tokens differ",
    "max_length": "lengths, which leave out other rows",
}


@dataclass(frozen=True)
class SweepSpec:
    """Students to train instead of one, of which the best by validation goes on."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    over: Annotated[
        dict[str, list[Any]] | None,
        Field(description='Options of the student with the values to try: {"rank": [16, 32], "epochs": [3, 5]}'),
    ] = None
    seeds: Annotated[int, Field(ge=1, le=100, description="Students of each, by seeds from the student's on")] = 1


class Variant(NamedTuple):
    """Values of the options that a sweep is over, and the students that have them: one a seed."""

    options: dict[str, Any]
    students: list[Causal | Classifier]


def variants(spec: Causal | Classifier, sweep: SweepSpec) -> list[Variant]:
    """Every combination of the values; without any, the student as it is.

    Raises:
        SetupError: There is no such option, no value, or it does not take this one; or losses could not be compared.
    """
    from pydantic import TypeAdapter, ValidationError

    over, known = sweep.over or {}, [field.name for field in fields(spec) if field.name not in (*APART, "seed")]
    for name, values in over.items():
        if name in APART:
            raise SetupError(f"sweep.over {name!r}: losses of {APART[name]}, cannot be compared; run once for each")
        if name == "seed":
            raise SetupError("sweep.over 'seed': give sweep.seeds, how many")
        if name not in known:
            raise SetupError(f"sweep.over {name!r} is no option of a {spec.name} student; known are {', '.join(known)}")
        if not values:
            raise SetupError(f"sweep.over {name!r} has no values; give one or more")
    found = []
    for chosen in itertools.product(*over.values()):
        options = dict(zip(over, chosen, strict=True))
        try:
            one = TypeAdapter(type(spec)).validate_python({**asdict(spec), **options})
        except ValidationError as problem:
            said = problem.errors()[0]
            where = ".".join(map(str, said["loc"]))
            raise SetupError(f"sweep.over {where} {said['input']!r}: {said['msg']}") from problem
        found.append(Variant(options, [replace(one, seed=spec.seed + n) for n in range(sweep.seeds)]))
    return found


def best(tried: Sequence[Variant], made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best student, as `distill` returned it; where there were several, with a row for each variant in `sweep`.

    Args:
        made: The students of all variants, in order.
    """
    if len(made) == 1:
        return made[0]
    left = iter(made)
    rows = []
    for variant in tried:
        students = sorted(itertools.islice(left, len(variant.students)), key=loss)
        losses = [loss(student) for student in students]
        rows.append({
            "options": variant.options, "seeds": len(losses), "validation_loss": round(mean(losses), 5),
            "spread": round(stdev(losses), 5) if len(losses) > 1 else None, "student_id": students[0]["student_id"],
        })  # fmt: skip
    rows.sort(key=lambda row: row["validation_loss"])
    winner = next(student for student in made if student["student_id"] == rows[0]["student_id"])
    return {**winner, "sweep": rows}


def loss(student: dict[str, Any]) -> float:
    """The validation loss of the weights that were kept: nats a token of imitation, or of a label."""
    if "prefer" in student:
        return float(student["prefer"]["validation_loss"])
    return min((float(epoch["validation_loss"]) for epoch in student["history"]), default=math.inf)


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A sweep's rows for people, the best first; the spread is the standard deviation over the seeds."""
    return [
        {
            **{name: str(value) for name, value in row["options"].items()},
            "validation loss": f"{row['validation_loss']:.5f}"
            + ("" if row["spread"] is None else f" ± {row['spread']:.5f}"),
            "seeds": str(row["seeds"]), "best student": row["student_id"],
        }
        for row in rows
    ]  # fmt: skip
