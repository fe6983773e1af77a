"""A student that begins with the champion's adapter: what it is then, and when it is refused or not taken."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import registry
from infra.settings import SetupError
from tasks.curate import CurateSpec, curate
from tasks.distill import distill
from tasks.lessons import Imitation
from tasks.students import Causal
from tests.shop_log import WORKLOAD

FIRST = Causal(epochs=1, rank=4, alpha=8, learn=Imitation(), max_steps=4, learning_rate=3e-2)
NEXT = replace(FIRST, start="champion", learning_rate=1e-12, seed=1)


def weights(student: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(student["path"]) / "model.safetensors")


def serve(student: dict[str, Any], adapter: bool = True) -> str:
    """Register a student as it is, with its adapter, and let it serve; returns the version."""
    folder = Path(student["path"])
    made = {"metrics": {}, "tags": {}, "parameters": {}, "run_name": "student"}
    version, _ = registry.register(WORKLOAD, folder, adapter=folder / "adapter" if adapter else None, **made)
    registry.promote(WORKLOAD, version)
    return version


def test_a_student_begins_where_the_champion_is_and_the_champion_is_its_parent(dataset: str) -> None:
    import torch

    without = distill(dataset, NEXT)
    assert without["start"] == "base: nothing serves yet"
    first = distill(dataset, FIRST)
    assert first["start"] == "base"
    version = serve(first)
    second = distill(dataset, NEXT)
    assert second["start"] == f"champion {version}" and second["student_id"] != without["student_id"]
    ours, theirs, other = (weights(student) for student in (second, first, without))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # at this rate it has learned nothing more
    assert any(not torch.allclose(other[name], theirs[name], atol=1e-2) for name in theirs)
    manifest = json.loads((Path(second["path"]) / "adapter" / "flywheel.json").read_text())
    assert manifest["datasets"] == [dataset, dataset]
    other_champion = serve(distill(dataset, replace(FIRST, seed=2)))
    third = distill(dataset, NEXT)
    assert third["start"] == f"champion {other_champion}" and third["student_id"] != second["student_id"]


def test_another_shape_or_base_is_refused_with_both_names(dataset: str, bare: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    version = serve(distill(dataset, FIRST))
    other = tmp_path / "other"
    shutil.copytree(bare, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    for spec, said in (
        (replace(NEXT, rank=2), "rank 4 and not 2"),
        (replace(NEXT, alpha=16), "alpha 8 and not 16"),
        (replace(NEXT, adapter="dora"), "adapter lora and not dora"),
        (replace(NEXT, embeddings=True), "embeddings False and not True"),
        (replace(NEXT, targets=("q_proj",)), r"targets down_proj,.*,v_proj and not q_proj"),
        (replace(NEXT, base=str(other)), rf"base {bare} \(\w+\) and not {other} \(\w+\)"),
    ):
        with pytest.raises(SetupError, match=rf"champion {version} of .* has {said}; .*start=base"):
            distill(dataset, spec)


def test_a_champion_that_has_learned_what_is_held_out_now_is_not_gone_on_with(dataset: str) -> None:
    version = serve(distill(dataset, FIRST))
    wider = curate(WORKLOAD, CurateSpec(holdout=0.6))["dataset_id"]
    said = distill(wider, NEXT)["start"]
    assert said.startswith(f"base: champion {version} has learned ") and said.endswith(" that are held out now")


def test_a_pissa_adapter_goes_on_as_the_lora_it_was_saved_as(dataset: str) -> None:
    import torch

    first = distill(dataset, replace(FIRST, adapter="pissa"))
    serve(first)
    second = distill(dataset, replace(NEXT, rank=8, alpha=16))
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pissa is a way to begin afresh"):
        replace(NEXT, adapter="pissa")


def test_embeddings_go_on_where_the_champion_s_are(dataset: str) -> None:
    import torch

    first = distill(dataset, replace(FIRST, embeddings=True))
    serve(first)
    begun, later = (distill(dataset, replace(NEXT, embeddings=True, learning_rate=rate)) for rate in (1e-12, 3e-2))
    torch.testing.assert_close(weights(begun), weights(first), rtol=1e-4, atol=1e-5)
    name = "model.embed_tokens.weight"
    assert not torch.allclose(weights(later)[name], weights(first)[name], atol=1e-3), "they are trained further"


def test_a_champion_without_an_adapter_says_so(dataset: str) -> None:
    student = distill(dataset, replace(FIRST, seed=3))
    version = serve(student, adapter=False)
    with pytest.raises(SetupError, match=f"champion {version} .* without an adapter"):
        distill(dataset, NEXT)
