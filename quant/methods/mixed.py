"""Mixed precision: bits for each layer, by what each layer's rounding costs the model, under a budget.

For each unit l, a linear or some that runtimes fuse, and each choice of bits b, the sensitivity d(l, b) is
KL(unquantized || with only l rounded to b bits) on the calibration data. Errors of different units are small and nearly
uncorrelated, so they add up:

    KL(bits) ~ sum over l of d(l, b_l)

(Dong et al. 2020, HAWQ-V2, arXiv 1911.03852, section 3, use the Hessian's trace in the place of d; measuring d directly
needs one forward pass more a choice and no second derivatives.) Then, x(l, b) in {0, 1} with one b for each l,

    min  sum d(l, b) x(l, b)     s.t.  sum bytes(l, b) x(l, b) <= budget           bits_per_weight: "fit into this"
    min  sum bytes(l, b) x(l, b) s.t.  sum d(l, b) x(l, b) <= max_kl               max_kl: "as small as possible"

is an integer program that scipy's HiGHS solves exactly in well under a second; a greedy choice by d per byte was up to
a tenth worse in a brute-force test. The layers are then quantized by `method` on the chosen grids, together.

* d is measured with rounding to nearest, on `PROBE` sequences. With GPTQ the error is smaller by a factor that is much
  the same for all layers, so the order of preference stays. What the factor is, one measurement of the whole model
  tells: under `max_kl` the program is solved again with d scaled to the KL found, `ROUNDS` times at most, and the
  smallest model that kept to the limit wins.
* At few bits errors are no longer small, the sum is off by more, and the plan can lose to the same bits for all: where
  that fits into the budget it is quantized as well, and the lower KL on held sequences wins.
* q, k and v are one unit, and gate and up: vLLM fuses them into one product and takes the first one's bits for all.

Cost: (units x choices) forward passes of the probe, then `method`, up to `ROUNDS` times. Tested against
brute force over all assignments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from quant.described import described
from quant.errors import QuantError
from quant.methods.autoround import AutoRound
from quant.methods.awq import AWQ
from quant.methods.base import Bits, Grids
from quant.methods.best import Best
from quant.methods.gptq import GPTQ
from quant.methods.qat import QAT
from quant.methods.rtn import RTN

if TYPE_CHECKING:
    from torch import nn

    from quant import Progress
    from quant.calibrate import Batch
    from quant.distillation import Lesson
    from quant.grid import Grid

PROBE = 16
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ROUNDS = 3

DEFAULT = GPTQ()

Sensitivity = dict[str, dict[Bits, float]]
"""KL in nats by unit and bits."""

Units = dict[str, list[str]]
"""Names of linears by the first one's name."""


@dataclass(frozen=True)
class Mixed:
    """Bits for each layer under a budget, then one method for all.

    Attributes:
        name: which method this is.
        method: how the layers are quantized; its own `bits` are not used.
        choices: the bits a layer may get.
        bits_per_weight: budget over all linears of the blocks, scales included; or
        max_kl: the largest mean KL per token, in nats, on the calibration data. One of the two.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "json_schema_extra": described}

    name: Literal["mixed"] = "mixed"
    method: RTN | GPTQ | AWQ | AutoRound | QAT | Best = DEFAULT
    choices: tuple[Bits, ...] = (2, 3, 4, 5, 6, 8)
    bits_per_weight: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.max_kl is None):
            given = f"bits_per_weight={self.bits_per_weight} and max_kl={self.max_kl}"
            raise QuantError(f"mixed got {given}; give one of them")
        if not self.choices:
            raise QuantError("mixed got no choices of bits; give some of 2, 3, 4, 5, 6 and 8")

    @property
    def label(self) -> str:
        """The budget."""
        return f"{self.bits_per_weight:g} bits" if self.bits_per_weight else f"KL {self.max_kl:g}"

    def grids(self, model: nn.Module) -> dict[str, Grid]:
        """The smallest grid of each linear: what `check` looks at before anything is measured."""
        return replace(self.method, bits=min(self.choices)).grids(model)

    def apply(self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids | None = None) -> None:
        """Quantize `model` in place, measuring on `batches`."""
        from quant.calibrate import require

        require(batches, self.name)
        choices = {bits: replace(self.method, bits=bits).number_grid() for bits in sorted(self.choices)}
        together = units(model)
        measured = sensitivity(model, together, _head_of(batches, PROBE), choices, progress)
        problem = _Problem(together, choices, _bytes(model, together, choices), measured)
        if self.bits_per_weight is not None:
            weights = sum(layer.weight.numel() for layer in _layers(model).values())
            self._into(self.bits_per_weight * weights / 8, problem, model, batches, progress)
            return
        assert self.max_kl is not None
        self._within(self.max_kl, problem, model, batches, progress)

    def _into(
        self, budget: float, problem: _Problem, model: nn.Module, batches: Sequence[Batch], progress: Progress
    ) -> None:
        """Quantize to the bits of least KL within the budget, or to the same bits for all if that is found better."""
        from quant.anatomy import become
        from quant.distillation import course

        chosen = solve(problem.measured, problem.costs, budget=budget)
        fitting = [bits for bits in problem.choices if sum(row[bits] for row in problem.costs.values()) <= budget]
        uniform = dict.fromkeys(problem.costs, max(fitting)) if fitting else chosen
        if uniform == chosen:
            self.method.apply(model, batches, progress, problem.grids(chosen))
            return
        exam = course(model, batches).exam
        tried = [self._tried(model, batches, progress, problem.grids(plan), exam) for plan in (chosen, uniform)]
        become(model, min(tried, key=lambda found: found.kl).model)

    def _tried(
        self, model: nn.Module, batches: Sequence[Batch], progress: Progress, grids: Grids, exam: list[Lesson]
    ) -> _Tried:
        """What a copy of the model comes to on `grids`."""
        from copy import deepcopy

        from quant.distillation import measure

        copy = deepcopy(model)
        self.method.apply(copy, batches, progress, grids)
        return _Tried(copy, measure(copy, exam))

    def _within(
        self, limit: float, problem: _Problem, model: nn.Module, batches: Sequence[Batch], progress: Progress
    ) -> None:
        """Quantize to the smallest model whose KL is found to be within the limit."""
        from quant.anatomy import become
        from quant.distillation import course

        exam = course(model, batches).exam
        factor, best = 1.0, None
        for _ in range(ROUNDS):
            scaled = {n: {bits: kl * factor for bits, kl in row.items()} for n, row in problem.measured.items()}
            chosen = solve(scaled, problem.costs, max_kl=limit)
            tried = self._tried(model, batches, progress, problem.grids(chosen), exam)
            size = sum(problem.costs[name][bits] for name, bits in chosen.items())
            if tried.kl <= limit and (best is None or size < best[0]):
                best = (size, tried.model)
            factor *= tried.kl / sum(scaled[name][bits] for name, bits in chosen.items())
        if best is None:
            raise QuantError(f"no choice of {sorted(self.choices)} bits keeps the KL below {limit}; raise max_kl")
        become(model, best[1])


class _Problem(NamedTuple):
    """What is to be chosen for each unit, what each choice stores in bytes, and what it is measured to harm."""

    together: Units
    choices: dict[Bits, Grid]
    costs: dict[str, dict[Bits, float]]
    measured: Sensitivity

    def grids(self, chosen: dict[str, Bits]) -> dict[str, Grid]:
        """The grid of each linear from the bits of its unit."""
        return {name: self.choices[chosen[unit]] for unit, names in self.together.items() for name in names}


class _Tried(NamedTuple):
    """A quantized copy of the model, and its KL on the exam."""

    model: nn.Module
    kl: float


def units(model: nn.Module) -> Units:
    """The linears of the blocks, those together that a runtime may fuse."""
    found: Units = {}
    for name in _layers(model):
        parent, _, own = name.rpartition(".")
        partners = next((group for group in FUSED if own in group), (own,))
        first = next((f"{parent}.{partner}" for partner in partners if f"{parent}.{partner}" in found), name)
        found.setdefault(first, []).append(name)
    return found


def sensitivity(
    model: nn.Module, together: Units, batches: Sequence[Batch], choices: dict[Bits, Grid], progress: Progress
) -> Sensitivity:
    """KL of the model with one unit alone rounded to nearest, for each unit and choice. The model is unchanged."""
    from quant.distillation import lesson, measure, place
    from quant.linear import QuantLinear

    exam = [lesson(model, batch) for batch in batches]
    layers = _layers(model)
    found: Sensitivity = {}
    for done, (unit, names) in enumerate(together.items(), start=1):
        found[unit] = {}
        for bits, grid in choices.items():
            place(model, {name: QuantLinear.round(layers[name], grid) for name in names})
            found[unit][bits] = max(measure(model, exam), 0.0)
        place(model, {name: layers[name] for name in names})
        progress(done, len(together), f"sensitivity of {unit}")
    return found


def solve(
    kl: Sensitivity, costs: dict[str, dict[Bits, float]], *, budget: float | None = None, max_kl: float | None = None
) -> dict[str, Bits]:
    """The bits of each unit: least KL within `budget` bytes, or fewest bytes within `max_kl`.

    Raises QuantError, naming the least that can be had, where nothing fits.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    cells = [(name, bits) for name, row in costs.items() for bits in row]
    size = np.array([costs[name][bits] for name, bits in cells])
    harm = np.array([kl[name][bits] for name, bits in cells])
    one_each = np.array([[name == of for of, _ in cells] for name in costs], dtype=float)
    aim, limited, limit = (harm, size, budget) if max_kl is None else (size, harm, max_kl)
    result: Any = milp(
        aim / max(aim.max(), 1e-30),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(limited[None], -np.inf, limit)],
        integrality=np.ones(len(cells)), bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0, "time_limit": 60.0},
    )  # fmt: skip
    if result.x is None:
        least = sum(min(row.values()) for row in (costs if max_kl is None else kl).values())
        unit = "bytes" if max_kl is None else "nats"
        raise QuantError(f"a budget of {limit:.4g} {unit} cannot be met, the least is {least:.4g}; raise it")
    return {name: bits for (name, bits), taken in zip(cells, result.x, strict=True) if taken > 0.5}


def _layers(model: nn.Module) -> dict[str, nn.Linear]:
    from quant.anatomy import all_linears

    return dict(all_linears(model))


def _bytes(model: nn.Module, together: Units, choices: dict[Bits, Grid]) -> dict[str, dict[Bits, float]]:
    """Stored bytes by unit and bits, scales included."""
    shapes = {name: layer.weight.shape for name, layer in _layers(model).items()}
    return {
        unit: {
            bits: sum(grid.bits_per_weight(*shapes[name]) * shapes[name].numel() / 8 for name in names)
            for bits, grid in choices.items()
        }
        for unit, names in together.items()
    }


def _head_of(batches: Sequence[Batch], sequences: int) -> list[Batch]:
    """The first sequences of the batches."""
    taken: list[Batch] = []
    for batch in batches:
        if sequences <= 0:
            break
        taken.append({key: tensor[:sequences] for key, tensor in batch.items()})
        sequences -= len(batch["input_ids"])
    return taken
