"""How large the holdout should be, from a frozen dataset alone."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import EvaluateSpec
from tasks.gate import GateSpec
from tasks.plan import plan, said
from tests.tasks.test_evaluate import frozen, logged


def planned(gate: GateSpec) -> dict[str, Any]:
    return plan(frozen(logged()), gate, EvaluateSpec())


def test_a_holdout_that_is_too_small_is_said_beforehand(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "flywheel.gate")
    told = planned(GateSpec())
    assert told["holdout"] == 12 and told["tests"] == 1 and 600 < told["recommended"] < 750
    assert "there are 12; an equal student may come out inconclusive" in caplog.text
    caplog.clear()
    enough = planned(GateSpec(margin=0.9))
    assert enough["recommended"] <= 12 and not caplog.text
    assert said(enough) == f"the gate asks for a holdout of about {enough['recommended']} items, there are 12"


def test_slices_and_a_search_for_the_worst_ask_for_more(home: Path) -> None:
    alone = planned(GateSpec())["recommended"]
    sliced = planned(GateSpec(slices=("yardstick:correction",), slice_margin=0.03))
    assert sliced["tests"] == 2 and sliced["recommended"] > alone
    searched = planned(GateSpec(worst=1, worst_items=4))
    assert searched["tests"] > 2 and searched["recommended"] > alone
    assert "has no item of a slice of gate.slices" in said(planned(GateSpec(slices=("tool:refund",))))
