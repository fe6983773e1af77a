"""The champion is loaded before anybody is told that it serves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.redeploy import render
from infra import promotions, registry
from infra.rollout import state
from infra.rollout.spec import RolloutSpec, Step
from infra.settings import SetupError
from tasks.redeploy import redeploy

STEPS = RolloutSpec((Step(0, requests=3), Step(0.5, requests=3)))


def register(folder: Path) -> str:
    return registry.register("shop", folder, metrics={}, tags={}, parameters={}, run_name="test")[0]


def promote(folder: Path) -> None:
    promotions.promote("shop", register(folder), "release", "passed")


def test_a_champion_answers_before_it_counts_as_deployed(home: Path, artifact: Callable[..., Path]) -> None:
    promote(artifact())
    expected = {"workload": "shop", "version": "1", "engine": "llamacpp", "gateway": "not running"}
    assert redeploy("shop") == expected


def test_a_champion_that_a_person_chose_is_deployed_and_said_to_be_no_choice_of_the_gate(
    home: Path, artifact: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    version, _ = registry.register("shop", artifact(), metrics={}, tags={}, parameters={}, run_name="test")
    registry.promote("shop", version)
    for _ in range(2):
        result = redeploy("shop")
        assert result["version"] == version and "did not pass the gate" in result["warning"]
    assert [r.levelname for r in caplog.records if r.name == "flywheel.redeploy"] == ["WARNING"] * 2


def test_a_classifier_that_has_no_label_for_hello_is_deployed(home: Path, labelled: Callable[..., Path]) -> None:
    promote(labelled())
    assert redeploy("shop")["engine"] == "onnx"


def test_without_a_champion_the_way_to_one_is_said(home: Path) -> None:
    with pytest.raises(SetupError, match="flywheel run --workload shop"):
        redeploy("shop")


def test_files_that_are_not_what_was_registered_are_refused(home: Path, artifact: Callable[..., Path]) -> None:
    promote(artifact())
    champion = registry.champion("shop")
    assert champion is not None
    with (champion.folder / "flywheel.json").open("a") as file:
        file.write(" ")
    with pytest.raises(SetupError, match="hash"):
        redeploy("shop")


def test_a_version_is_begun_by_steps_shown_and_aborted(home: Path, artifact: Callable[..., Path]) -> None:
    promote(artifact(candidate_id="one"))
    second = register(artifact(candidate_id="two"))
    begun = redeploy("shop", second, STEPS)
    assert (begun["version"], begun["rollout"]["status"], registry.champion_number("shop")) == (second, "running", "1")
    assert "step 1 of 2, 0 of 3 requests answered by the student" in render(redeploy("shop"))
    ended = redeploy("shop", abort=True)
    assert (ended["version"], ended["rollout"]["status"], state.running("shop")) == ("1", "aborted", [])
    shown = render(ended).splitlines()
    assert shown[2] == f"rollout of version {second} against version 1: aborted"
    assert [line.split("  ", 1)[1] for line in shown[-2:]] == [
        f"begin: version {second} against version 1; hand: asked for", "aborted: by hand",
    ]  # fmt: skip
    with pytest.raises(SetupError, match="nothing of 'shop' is under way"):
        redeploy("shop", abort=True)


def test_steps_need_somebody_to_be_compared_with(home: Path, artifact: Callable[..., Path]) -> None:
    version = register(artifact())
    with pytest.raises(SetupError, match="nothing answers for 'shop' that version 1 could be compared with"):
        redeploy("shop", version, STEPS)
    assert redeploy("shop", version)["version"] == registry.champion_number("shop") == version


def test_a_version_that_nobody_registered_is_one_line(home: Path) -> None:
    with pytest.raises(SetupError, match="'shop' has no version '9'"):
        redeploy("shop", "9")
