"""What a classifier is offered for, what its labels are, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from infra.engines.labels import Reader
from infra.settings import SetupError
from quant.methods import RTN
from tasks.quantize import CANDIDATES, CandidateSpec, fitting
from tasks.students import Causal, Classifier, StudentSpec
from tasks.students.classifier import labels_of, texts
from tests.conftest import living_in

CLOSED = {"closed": True, "distinct": 77, "covered": 1.0}


def row(content: str | None, *calls: str, weight: float = 1.0, asked: str = "order refund") -> dict[str, Any]:
    made = [{"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": a}} for n, a in
            enumerate(calls)]  # fmt: skip
    expected = {"role": "assistant", "content": content, **({"tool_calls": made} if made else {})}
    return {"messages": [{"role": "user", "content": asked}], "tools": None, "expected": expected, "weight": weight}


@pytest.mark.parametrize(("answers", "encoder", "said"), [
    (CLOSED, "x", ""),
    (CLOSED, "", "FLYWHEEL_ENCODER names no encoder, with which one could give these 77 answers"),
    ({"closed": False, "distinct": 1001, "covered": 0.03}, "x", "no closed set (over 1,000 distinct, 3% of the later"),
    ({"closed": False, "distinct": 9, "covered": 0.5}, "x", "no closed set (9 distinct, 50% of the later ones known)"),
    ({}, "x", "the answers are no closed set"),
])  # fmt: skip
def test_why_there_is_none_is_said(tmp_path: Path, answers: dict[str, Any], encoder: str, said: str) -> None:
    with living_in(tmp_path / "home", ENCODER=encoder):
        why = Classifier().unfit(answers)
    assert said in why and bool(said) == bool(why)


def test_missing_packages_are_named_before_anything_is_trained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert Classifier(base="x").unfit(CLOSED) == "no package onnxscript; pip install 'flywheel[onnx]'"


def test_labels_are_meanings_and_one_row_is_no_label() -> None:
    rows = [row("b"), row(" a "), row("a"), row(None, '{"x": 1}'), row("", '{"x":1}'), row("slip"), row("b")]
    call, a, b = labels_of(rows)
    assert (a["content"], b["content"], call["content"]) == ("a", "b", None)
    assert [c["function"]["name"] for c in call["tool_calls"]] == ["f"]
    assert [label["content"] for label in labels_of(rows[::-1])] == [None, "a", "b"]


def test_rows_are_read_with_their_label_and_their_weight(labelled: Any) -> None:
    rows = [row("b", weight=2.0), row("b"), row("a"), row("a", asked="parcel"), row("slip")]
    found = texts(rows, labels_of(rows), Reader(labelled(), 8))
    assert [(t.ids, t.label, t.weight) for t in found] == [
        ([1, 3], 1, 2.0), ([1, 3], 1, 1.0), ([1, 3], 0, 1.0), ([2], 0, 1.0),
    ]  # fmt: skip


def test_a_candidate_s_format_says_whose_it_is() -> None:
    assert {spec.format for spec in fitting("classifier", CANDIDATES)} == {"onnx"}
    assert "onnx" not in {spec.format for spec in fitting("causal", CANDIDATES)}
    assert [spec.title for spec in (CandidateSpec(None, "onnx"), CandidateSpec(RTN(bits=8), "onnx"))] == [
        "classifier float (onnx)", "classifier int8 PTQ (rtn)",
    ]  # fmt: skip


def test_the_menus_are_read_from_json() -> None:
    candidate = TypeAdapter(CandidateSpec)
    assert candidate.validate_python({"method": None, "format": "onnx"}) == CandidateSpec(None, "onnx")
    assert candidate.validate_python({"method": {"name": "rtn", "bits": 8}}) == CandidateSpec(RTN(bits=8))
    student: TypeAdapter[Any] = TypeAdapter(StudentSpec)
    assert student.validate_python({"name": "classifier", "epochs": 2}) == Classifier(epochs=2)
    assert student.validate_python({"name": "causal"}) == Causal()
    with pytest.raises(ValidationError, match="rank"):
        student.validate_python({"name": "classifier", "rank": 3})


@pytest.mark.parametrize("base", ["/does/not/exist", "PLAIN_FOLDER"])
def test_a_base_that_is_no_model_is_named(tmp_path: Path, base: str) -> None:
    from tasks.training.encoder import load_encoder

    path = str(tmp_path) if base == "PLAIN_FOLDER" else base
    with pytest.raises(SetupError, match=rf"encoder '{path}' is not a Hugging Face model.*FLYWHEEL_ENCODER"):
        load_encoder(path)
