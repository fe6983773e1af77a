"""From a frozen dataset to a student and its candidates, on a tiny base: what is learned, kept and refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.database.session import session
from infra.database.tables import Student
from infra.engines import load
from infra.seedling.tokenizer import save, train
from infra.settings import SetupError, settings
from quant.methods import GPTQ, RTN
from tasks.curate import CurateSpec, curate
from tasks.distill import distill
from tasks.ingest import ingest
from tasks.lessons import DPO, KTO, Imitation, Logits, OnPolicy
from tasks.quantize import CandidateSpec, quantize
from tasks.sources import JSONL
from tasks.students import Causal
from tests.conftest import living_in
from tests.shop_log import WORKLOAD, write_log

SPEC = Causal(epochs=1, rank=4, alpha=8, learning_rate=1e-2)


def about(n: int) -> list[dict[str, Any]]:
    """What is said of the first answer of a conversation: a third is corrected, a third liked, a third disliked."""
    said = {"record_id": f"1-{n}-0", "timestamp": 1_800_000_000}
    values = [("correction", f"better {n}"), ("thumb", 1), ("thumb", -1)]
    return [{**said, "kind": values[n % 3][0], "value": values[n % 3][1]}]


@pytest.fixture(scope="module")
def shop(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a day of the shop, whose student base is the bare model; there is no teacher yet."""
    folder = tmp_path_factory.mktemp("distill")
    log = write_log(folder / "log.jsonl", seed=1, conversations=60, day=1)
    with living_in(folder / "home", STUDENT=str(bare), TEACHER="", THREADS="1"):
        opinions = [opinion for n in range(40) for opinion in about(n)]
        (folder / "opinions.jsonl").write_text("".join(json.dumps(opinion) + "\n" for opinion in opinions))
        ingest(JSONL(paths=(str(log), str(folder / "opinions.jsonl"))))
    return folder / "home"


def teacher_from(base: Path, home: Path, bare: Path) -> str:
    """A model that was taught the shop's answers, as a teacher."""
    with living_in(home, STUDENT=str(bare), TEACHER="", THREADS="1"):
        dataset = curate(WORKLOAD, CurateSpec())["dataset_id"]
        spec = Causal(base=str(base), learn=Imitation(), rank=16, alpha=64, learning_rate=5e-3, epochs=3)
        return str(distill(dataset, spec)["path"])


@pytest.fixture(scope="module")
def dataset(bare: Path, shop: Path) -> Iterator[str]:
    """A frozen dataset in that home, and a teacher who knows the shop."""
    with living_in(shop, STUDENT=str(bare), TEACHER=teacher_from(bare, shop, bare), THREADS="1"):
        yield curate(WORKLOAD, CurateSpec())["dataset_id"]


@pytest.fixture(scope="module")
def student(dataset: str) -> dict[str, Any]:
    return distill(dataset, SPEC)


def test_the_merged_student_is_the_base_with_its_adapter(bare: Path, student: dict[str, Any]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(student["path"])
    base = AutoModelForCausalLM.from_pretrained(bare)
    ids = torch.arange(40)[None]
    untouched = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, Path(student["path"]) / "adapter")
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(merged(input_ids=ids).logits, untouched, atol=0.1), "nothing was learned"


def test_the_same_dataset_and_spec_give_the_same_student_without_training(
    dataset: str, student: dict[str, Any]
) -> None:
    steps: list[int] = []
    again = distill(dataset, SPEC, progress=lambda done, total, what: steps.append(done))
    assert (again["student_id"], steps) == (student["student_id"], [])
    other = distill(dataset, Causal(epochs=1, rank=2, alpha=4, learning_rate=1e-3))
    assert other["student_id"] != student["student_id"]


def test_the_teacher_s_logits_are_kept_with_the_dataset(dataset: str, student: dict[str, Any]) -> None:
    from tasks.curate import load as frozen

    assert student["followed"] > 0
    assert student["followed"] + sum(student["not_followed"].values()) == student["examples"]
    assert len(list(Path(frozen(dataset).path).glob("teacher-*.safetensors"))) == 1


class Killed(Exception):
    """What ends a run in the middle."""


def in_step_3(stage: str) -> Callable[[int, int, str], None]:
    """Progress that is the end of a run."""

    def killed(done: int, total: int, what: str) -> None:
        if what.startswith(stage) and done == 3:
            raise Killed

    return killed


def made_again(dataset: str, spec: Causal, student: dict[str, Any]) -> dict[str, Any]:
    """The student of a run that nobody ended, in the place of one that is there."""
    with session() as db:
        db.delete(db.get_one(Student, student["student_id"]))
    return distill(dataset, spec)


@pytest.mark.parametrize("prefer", [DPO(epochs=2), KTO(epochs=2)], ids=lambda prefer: prefer.name)
def test_what_people_prefer_is_learned_after_the_lesson_and_a_killed_run_goes_on(dataset: str, prefer: Any) -> None:
    import torch
    from safetensors.torch import load_file

    spec = replace(SPEC, learn=Imitation(), max_steps=4, checkpoint_steps=2, prefer=prefer)

    with pytest.raises(Killed):
        distill(dataset, spec, progress=in_step_3("prefer"))
    seen: list[int] = []
    broken = distill(dataset, spec, progress=lambda done, total, what: seen.append(done))
    assert seen[0] == 3, "the lesson is not learned again, and the stage goes on after its checkpoint"
    tensors = load_file(Path(broken["path"]) / "model.safetensors")
    unbroken = made_again(dataset, spec, broken)
    assert unbroken == broken, "the report included"
    assert all(torch.equal(tensors[n], t) for n, t in load_file(Path(unbroken["path"]) / "model.safetensors").items())
    said = broken["prefer"]
    assert said["name"] == prefer.name and said["margin"] > 0 and said["validation_loss"] > 0
    assert said["pairs" if prefer.name == "dpo" else "liked"] > 5
    test_the_merged_student_is_the_base_with_its_adapter(Path(broken["base"]), broken)


def test_embeddings_of_the_traffic_s_tokens_are_learned_and_a_killed_run_ends_with_the_same_weights(
    bare: Path, dataset: str
) -> None:
    from safetensors.torch import load_file

    spec = replace(SPEC, learn=Imitation(), max_steps=4, checkpoint_steps=2, embeddings=True)

    with pytest.raises(Killed):
        distill(dataset, spec, progress=in_step_3("distill"))
    broken = distill(dataset, spec)
    test_the_merged_student_is_the_base_with_its_adapter(bare, broken)
    tensors = load_file(Path(broken["path"]) / "model.safetensors")
    unbroken = load_file(Path(made_again(dataset, spec, broken)["path"]) / "model.safetensors")
    assert all(bool((tensors[name] == unbroken[name]).all()) for name in unbroken)
    name = "model.embed_tokens.weight"
    moved = (tensors[name] != load_file(bare / "model.safetensors")[name]).any(1)
    assert 10 < moved.sum() < len(moved), "the traffic's tokens, and no others"


def test_a_teacher_with_other_tokens_is_imitated_and_said_so_or_aligned_where_asked(
    bare: Path, shop: Path, dataset: str, tmp_path: Path
) -> None:
    shutil.copytree(bare, tmp_path / "base")
    save(train(["availability of orders, and wherever they are"] * 20), tmp_path / "base")
    teacher = teacher_from(tmp_path / "base", shop, bare)
    with living_in(shop, STUDENT=str(bare), TEACHER=teacher, THREADS="1"):
        silent = distill(dataset, SPEC)
        aligned = distill(dataset, replace(SPEC, learn=Logits(tokenizers="aligned")))
        with pytest.raises(SetupError, match=r"on_policy.*the teacher's vocabulary has.*learn from logits"):
            distill(dataset, replace(SPEC, learn=OnPolicy()))
    (reason,) = silent["not_followed"]
    assert silent["followed"] == 0 and silent["not_followed"][reason] == silent["examples"]
    assert "the teacher's vocabulary has" in reason and '"tokenizers": "aligned"' in reason
    assert aligned["followed"] > 0 and aligned["history"] != silent["history"]


def test_a_student_whose_answers_nobody_judges_is_refused(bare: Path, dataset: str) -> None:
    with (
        living_in(settings().home, STUDENT=str(bare), TEACHER="", THREADS="1"),
        pytest.raises(SetupError, match=r"on_policy.*'shop.assistant'; set FLYWHEEL_TEACHER.*or learn from logits"),
    ):
        distill(dataset, replace(SPEC, learn=OnPolicy()))


def test_the_student_s_own_answers_change_what_it_becomes(shop: Path, dataset: str) -> None:
    with living_in(shop, THREADS="1"):  # the seedlings: a teacher who would have said what was logged
        idle, own = (
            distill(dataset, replace(SPEC, max_steps=4, learn=OnPolicy(rate=rate, share=0.5))) for rate in (0.0, 1.0)
        )
    assert own["followed"] == idle["followed"] > 0.5 * own["examples"]
    assert idle["history"] != own["history"]


def test_the_student_knows_which_prefix_it_has_learned(dataset: str, student: dict[str, Any]) -> None:
    from tasks.curate import load as frozen

    manifest = json.loads((Path(student["path"]) / "flywheel.json").read_text())
    assert manifest["prefix"] == frozen(dataset).prefix.to_json()
    assert (manifest["workload"], manifest["dataset_id"]) == (WORKLOAD, dataset)


def test_examples_that_are_too_long_are_counted_and_none_left_is_said(dataset: str) -> None:
    short = distill(dataset, Causal(epochs=1, rank=2, alpha=4, max_length=120))
    assert short["too_long"] > 0
    with pytest.raises(SetupError, match=r"max_length=16.*raise distill\.max_length"):
        distill(dataset, Causal(max_length=16))


@pytest.mark.parametrize("base", ["/does/not/exist", "PLAIN_FOLDER"])
def test_a_base_that_is_no_model_is_named(dataset: str, tmp_path: Path, base: str) -> None:
    base = str(tmp_path) if base == "PLAIN_FOLDER" else base
    with pytest.raises(SetupError, match=base):
        distill(dataset, Causal(base=base))


@pytest.mark.parametrize("format", ["gguf", "compressed_tensors"])
def test_a_candidate_is_served_from_disk_and_made_once(student: dict[str, Any], format: Any) -> None:
    spec = CandidateSpec(GPTQ(bits=4), format, calibration=16)
    made = quantize(student["student_id"], spec)
    engine = load(Path(made["path"]))
    assert engine.name == {"gguf": "llamacpp", "compressed_tensors": "torch"}[format]
    (reply,) = engine.chat([{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}])
    assert 0 < reply.completion_tokens <= 4
    engine.close()
    assert quantize(student["student_id"], spec) == made


def test_what_a_format_cannot_hold_is_said_in_a_line_and_leaves_nothing(student: dict[str, Any], shop: Path) -> None:
    before = sorted((shop / "candidates").glob("*"))
    with pytest.raises(SetupError, match=r"candidate int2 .*: .*2.* gguf|candidate int2 .*gguf"):
        quantize(student["student_id"], CandidateSpec(RTN(bits=2), format="gguf"))
    assert [path for path in sorted((shop / "candidates").glob("*")) if path.suffix == ""] == [
        path for path in before if path.suffix == ""
    ]


def test_fewer_bits_are_fewer_bytes(student: dict[str, Any]) -> None:
    eight, four = (quantize(student["student_id"], CandidateSpec(RTN(bits=bits))) for bits in (8, 4))
    assert four["bytes"] < eight["bytes"]
    assert four["candidate_id"] != eight["candidate_id"]
