"""What each field of a spec means, taken from its docstring into the JSON schema that forms are made of."""

from __future__ import annotations

import inspect
import re
from typing import Any

FIELD = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def described(schema: dict[str, Any], spec: type[Any]) -> None:
    """Give a spec's schema its docstring's first line, and each field what `Attributes:` says of it there or in a base.

    For `__pydantic_config__`, as `json_schema_extra`: whoever makes schemas calls it, and nothing is imported for it.
    """
    said: dict[str, str] = {}
    for base in reversed(spec.__mro__):
        _, _, attributes = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for names, text in FIELD.findall(attributes):
            plain = " ".join(text.split()).rstrip(".")
            said |= dict.fromkeys(names.split(", "), plain[:1].upper() + plain[1:])
    if doc := inspect.getdoc(spec):
        schema["description"] = doc.split("\n")[0].rstrip(".")
    for name, field in schema.get("properties", {}).items():
        if name in said:
            field.setdefault("description", said[name])
