"""The champion is loaded before anybody is told that it serves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra import promotions, registry
from infra.settings import SetupError
from tasks.redeploy import redeploy


def promote(folder: Path) -> None:
    version, _ = registry.register("shop", folder, metrics={}, tags={}, parameters={}, run_name="test")
    promotions.promote("shop", version, "release", "passed")


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
