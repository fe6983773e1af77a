"""Engines: the same artifact gives the same answers, whichever runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.engines import load
from infra.seedling import shop
from infra.settings import SEEDLING, SetupError
from tests.models import PREFIX

ASKED = [
    {"messages": [{"role": "user", "content": said}]} for e in shop.exchanges(3, 12, "train") for said, _ in e.turns
]


def test_llamacpp_answers_as_torch_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import quant

    model_dir = SEEDLING / "teacher"
    quant.export(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), tmp_path / "model.gguf", "gguf", model_dir
    )
    for file in (*model_dir.glob("*token*"), *model_dir.glob("*.jinja")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fast, plain = load(tmp_path), load(model_dir)
    assert (fast.name, plain.name) == ("llamacpp", "torch")
    limited = [{**request, "max_tokens": 24} for request in ASKED]
    answers = [[(r.message["content"], r.finish_reason) for r in engine.chat(limited)] for engine in (fast, plain)]
    same = sum(a == b for a, b in zip(*answers, strict=True))
    # float16 against bfloat16 may turn a near tie; all but a few answers are the same.
    assert same >= 0.8 * len(limited), list(zip(*answers, strict=True))
    fast.close()


def test_answers_do_not_depend_on_how_many_are_asked_at_once(artifact: Callable[..., Path]) -> None:
    engine = load(artifact())
    requests = [{**request, "max_tokens": 6} for request in ASKED]
    together = [reply.message["content"] for reply in engine.chat(requests)]
    alone = [reply.message["content"] for reply in engine.chat(requests, parallel=1)]
    assert together == alone
    engine.close()


def test_the_baked_prefix_is_stripped_and_no_other(artifact: Callable[..., Path]) -> None:
    engine = load(artifact())
    messages, tools = PREFIX.restore([{"role": "user", "content": "hi"}])
    assert engine.strip({"messages": messages, "tools": tools, "seed": 1}) == {
        "messages": [{"role": "user", "content": "hi"}], "tools": None, "seed": 1,
    }  # fmt: skip
    assert engine.strip({"messages": messages, "tools": None}) is None
    assert engine.strip({"messages": messages[1:], "tools": tools}) is None
    engine.close()


def test_the_request_s_own_token_limit_holds(artifact: Callable[..., Path]) -> None:
    engine = load(artifact(max_tokens=5))
    own, default = engine.chat([{**ASKED[0], "max_tokens": 3}, ASKED[0]])
    assert own.completion_tokens <= 3
    assert default.completion_tokens <= 5
    engine.close()


def test_a_folder_that_is_no_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is no artifact"):
        load(tmp_path)


def test_a_broken_gguf_is_named(artifact: Callable[..., Path]) -> None:
    folder = artifact()
    (folder / "model.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(SetupError, match=r"model\.gguf"):
        load(folder)


def test_the_surprise_of_an_answer_is_the_log_probability_of_its_tokens(
    bare: Path, artifact: Callable[..., Path]
) -> None:
    """Oracle: Hugging Face's own loss, of the answer's tokens alone."""
    import torch

    from infra.engines.chat import render

    engine = load(bare)
    answers = [{"role": "assistant", "content": said} for said in ("order 48213", "please")]
    requests = ASKED[:2]
    told = engine.surprise(requests, answers)
    assert told is not None
    for request, answer, nats in zip(requests, answers, told, strict=True):
        prompt = render(engine.tokenizer, request["messages"], prompt=True)  # type: ignore[attr-defined]
        ids = torch.tensor([render(engine.tokenizer, [*request["messages"], answer])])  # type: ignore[attr-defined]
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        loss = engine.model(input_ids=ids, labels=labels).loss  # type: ignore[attr-defined]
        assert nats == pytest.approx(float(loss.detach()) * (ids.shape[1] - len(prompt)), rel=1e-3)
    engine.close()
    other = load(artifact())
    assert other.surprise(requests, answers) is None
    other.close()
