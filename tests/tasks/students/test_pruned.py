"""A student of a pruned base: smaller by what was asked, the same however often a run was killed, and served as any."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from infra import registry
from infra.engines import load
from infra.settings import SetupError
from quant.methods import RTN
from quant.pruning import Prune
from tasks.dataset import frozen
from tasks.distill import distill
from tasks.lessons import Imitation
from tasks.quantize import CandidateSpec, quantize
from tasks.students import Causal
from tasks.students.pruned import pruned
from tests.shop_log import WORKLOAD
from tests.tasks.training.test_launch import under_torchrun

HALF = Prune(layers=0.5, heads=0.5, mlp=0.5)
SPEC = Causal(
    prune=HALF, epochs=1, rank=4, alpha=8, learn=Imitation(), max_steps=4, learning_rate=1e-2, checkpoint_steps=2
)


@pytest.fixture(scope="module")
def student(dataset: str) -> dict[str, Any]:
    return distill(dataset, SPEC)


def digest(path: str | Path) -> str:
    return hashlib.sha256((Path(path) / "model.safetensors").read_bytes()).hexdigest()


def test_the_student_is_smaller_and_says_by_how_much(bare: Path, dataset: str, student: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student["path"])
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (1, 2, 1)
    assert (config.intermediate_size, config.hidden_size, config.head_dim) == (64, 64, 16)
    whole = AutoModelForCausalLM.from_pretrained(bare)
    assert student["parameters_before"] == sum(p.numel() for p in whole.parameters())
    assert student["parameters"] == sum(p.numel() for p in model.parameters()) < student["parameters_before"]
    manifest = json.loads((Path(student["path"]) / "adapter" / "flywheel.json").read_text())
    assert manifest["base"] == str(bare) and manifest["prune"]["layers"] == 0.5
    adapter = json.loads((Path(student["path"]) / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(bare)


def test_what_is_cut_decides_the_student_and_its_report_alone(dataset: str, student: dict[str, Any]) -> None:
    other = distill(dataset, replace(SPEC, prune=Prune(mlp=0.5)))
    whole = distill(dataset, replace(SPEC, prune=None))
    assert len({made["student_id"] for made in (student, other, whole)}) == 3
    assert student["parameters"] < other["parameters"] < other["parameters_before"]
    assert "parameters" not in whole


def test_a_candidate_of_it_is_served_by_llama_cpp(student: dict[str, Any]) -> None:
    made = quantize(student["student_id"], CandidateSpec(RTN(bits=8), calibration=16))
    engine = load(Path(made["path"]))
    assert engine.name == "llamacpp"
    (reply,) = engine.chat([{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}])
    assert 0 < reply.completion_tokens <= 4
    engine.close()


def test_two_fresh_runs_prune_alike(bare: Path, dataset: str, tmp_path: Path) -> None:
    one, two = (pruned(str(bare), HALF, frozen.load(dataset), tmp_path / name) for name in ("one", "two"))
    assert digest(one) == digest(two)


@pytest.mark.parametrize("when", ["while it prunes", "in the lesson"])
def test_a_killed_run_goes_on_with_what_was_pruned_and_ends_with_the_same_weights(
    dataset: str, student: dict[str, Any], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = digest(student["path"])
    shutil.rmtree(student["path"])  # so that it is made once more

    class Killed(Exception):
        pass

    def killed(*arguments: Any) -> None:
        if when == "while it prunes" or arguments[:1] == (3,):
            raise Killed

    work = Path(student["path"]).with_suffix(".work")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if when == "while it prunes":
            patch.setattr(Path, "rename", killed)
        distill(dataset, SPEC, progress=killed)
    assert (work / "pruned").exists() == (when == "in the lesson")
    before = digest(work / "pruned") if (work / "pruned").exists() else None
    seen: list[str] = []
    again = distill(dataset, SPEC, progress=lambda done, total, what: seen.append(digest(work / "pruned")))
    assert set(seen) == {before or seen[0]}
    assert (digest(again["path"]), again) == (unbroken, student)


def test_two_processes_train_on_one_pruned_base(
    dataset: str, student: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    one = load_file(Path(student["path"]) / "model.safetensors")
    shutil.rmtree(student["path"])  # so that it is made once more
    with monkeypatch.context() as patch:
        under_torchrun(patch, "--nproc-per-node 2")
        several = distill(dataset, SPEC)
    assert several["processes"] == 2 and several["parameters"] == student["parameters"]
    for name, tensor in load_file(Path(several["path"]) / "model.safetensors").items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-4)


def test_a_champion_s_adapter_and_a_pruned_base_do_not_go_together(
    bare: Path, dataset: str, student: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="the champion's adapter does not fit: give start=base"):
        replace(SPEC, start="champion")
    folder = Path(student["path"])
    made = {"metrics": {}, "tags": {}, "parameters": {}, "run_name": "student"}
    version, _ = registry.register(WORKLOAD, folder, adapter=folder / "adapter", **made)
    registry.promote(WORKLOAD, version)
    with pytest.raises(SetupError, match=rf"has base a pruned {bare} \(\w+\) and not {bare} \(\w+\); .*start=base"):
        distill(dataset, replace(SPEC, prune=None, start="champion"))


def test_what_cannot_be_cut_is_said_in_one_line(dataset: str) -> None:
    with pytest.raises(
        SetupError, match=r"distill\.prune: layers=0\.9 would leave all 2: the next number that fits is 1"
    ):
        distill(dataset, replace(SPEC, prune=Prune(layers=0.9)))
    for wrong, said in (({"mlp": 2}, "mlp is a share to keep"), ({"rank": 2}, "Unexpected keyword")):
        with pytest.raises(ValidationError, match=said):
            TypeAdapter(Causal).validate_python({"prune": wrong})
