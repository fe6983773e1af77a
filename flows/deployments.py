"""The deployments of `infra/prefect.yaml`, and the presets of the wheel among them."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from infra.settings import SetupError

WHEEL = "flows.flywheel.flywheel"


@cache
def deployments() -> list[dict[str, Any]]:
    """Each deployment as the file has it."""
    text = (files("infra") / "prefect.yaml").read_text()
    return list(yaml.safe_load(text)["deployments"])


def presets() -> dict[str, dict[str, Any]]:
    """The wheel's parameters by the name of the preset: those of its deployments that set any."""
    return {d["name"]: d["parameters"] for d in deployments() if d["entrypoint"] == WHEEL and d.get("parameters")}


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's parameters and those that were given, which count more, field by field.

    Raises:
        SetupError: There is no such preset.
    """
    if name not in (known := presets()):
        raise SetupError(f"preset {name!r} does not exist; known are {', '.join(known)}")
    merged: dict[str, Any] = {**known[name], **given}
    for key, value in known[name].items():
        if isinstance(value, dict) and isinstance(given.get(key), Mapping):
            merged[key] = {**value, **given[key]}
    return merged
