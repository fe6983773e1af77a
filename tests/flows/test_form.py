"""Prefect's form of each deployment: every field has a title and says what it means, choices are menus."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid, validate

from flows.deployments import WHEEL, deployments, presets


def flow_of(entrypoint: str) -> Any:
    module, name = entrypoint.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def schema_of(entrypoint: str) -> dict[str, Any]:
    return dict(parameter_schema(flow_of(entrypoint).fn).model_dump())


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, part in {"": schema, **schema["definitions"]}.items():
        for name, field in part.get("properties", {}).items():
            yield f"{where}.{name}", field


ENTRYPOINTS = sorted({one["entrypoint"] for one in deployments()})


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_every_field_has_a_title_and_says_what_it_means(entrypoint: str) -> None:
    found = dict(fields(schema_of(entrypoint)))
    fixed = {name for name, field in found.items() if "const" in field}  # the form says so itself
    # A nested spec has its own.
    assert [name for name, field in found.items() if not field.get("title") and "$ref" not in field] == []
    assert [name for name, field in found.items() if not field.get("description") and name not in fixed] == []


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_a_choice_is_a_menu_and_no_raw_json(entrypoint: str) -> None:
    schema = schema_of(entrypoint)
    assert "oneOf" not in str(schema) and "discriminator" not in str(schema)
    for _, field in fields(schema):
        named = [one for one in field.get("anyOf", []) if "$ref" in one]
        definitions = [schema["definitions"][one["$ref"].rsplit("/", 1)[1]] for one in named]
        assert all(one.get("title") for one in definitions)


def test_the_wheels_form_is_in_the_order_of_its_stages_and_literals_are_lists_of_choices() -> None:
    schema = schema_of(WHEEL)
    ordered = sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"])
    assert ordered == [
        "workload", "source", "curate", "distill", "sweep", "classify", "candidates", "evaluate", "gate", "rollout",
        "hours",
    ]  # fmt: skip
    assert schema["required"] == ["workload"]
    known = schema["definitions"]
    assert known["GPTQ"]["properties"]["bits"]["enum"] == [2, 3, 4, 5, 6, 8]
    assert known["CandidateSpec"]["properties"]["format"]["enum"] == ["gguf", "compressed_tensors", "onnx"]
    assert "weights that share a scale" in known["RTN"]["properties"]["group_size"]["description"].lower()


def test_a_wrong_value_is_explained_where_it_is() -> None:
    schema = schema_of(WHEEL)
    for given, said in (
        ({"gate": {"margin": 5}}, "5 is greater than or equal to the maximum of 1"),
        ({"distill": {"adapter": "lara"}}, "'lara' is not one of"),
        ({"curate": {"holdut": 0.5}}, "'holdut' was unexpected"),
    ):
        (error,) = validate({"workload": "w", **given}, schema, raise_on_error=False, ignore_required=False)
        assert said in error.message
        assert error.path[0] == next(iter(given))


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_fits_the_form_and_the_flow(name: str) -> None:
    given = {"workload": "w", **presets()[name]}
    assert is_valid(given, schema_of(WHEEL))
    assert flow_of(WHEEL).validate_parameters(given)["candidates"][0].title


def test_the_presets_are_those_that_are_promised() -> None:
    assert list(presets()) == ["quick", "thorough", "edge-int4", "fp8-on-hopper"]
    assert {spec["method"]["name"] for spec in presets()["fp8-on-hopper"]["candidates"]} == {"fp8"}
