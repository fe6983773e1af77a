"""How large the holdout should be, from a frozen dataset alone."""

from pathlib import Path
from typing import Any

from tasks.evaluate import EvaluateSpec
from tasks.gate.plan import enough, plan, said
from tasks.gate.rule import GateSpec
from tests.tasks.test_evaluate import frozen, logged


def planned(gate: GateSpec) -> dict[str, Any]:
    return plan(frozen(logged()), gate, EvaluateSpec())


def test_a_holdout_that_is_too_small_is_said_beforehand(home: Path) -> None:
    told = planned(GateSpec())
    assert told["holdout"] == 12 and told["tests"] == 1 and 600 < told["recommended"] < 750
    assert not enough(told) and said(told).endswith("there are 12; an equal student may come out inconclusive")
    wide = planned(GateSpec(margin=0.9))
    assert enough(wide) and wide["recommended"] <= 12
    assert said(wide) == f"the gate asks for a holdout of about {wide['recommended']} items, there are 12"


def test_slices_and_a_search_for_the_worst_ask_for_more(home: Path) -> None:
    alone = planned(GateSpec())["recommended"]
    sliced = planned(GateSpec(slices=("yardstick:correction",), slice_margin=0.03))
    assert sliced["tests"] == 2 and sliced["recommended"] > alone
    searched = planned(GateSpec(worst=1, worst_items=4))
    assert searched["tests"] > 2 and searched["recommended"] > alone
    assert "has no item of a slice of gate.slices" in said(planned(GateSpec(slices=("tool:refund",))))
