"""JSON-schema validity: what was said can be read by the program that asked for it.

A request that asks for JSON (`response_format`) is answered with words that are JSON and valid by its schema; a call
has the name of one of the request's tools and arguments that are valid by its `parameters`. Whether they are right is
another metric's question. Nothing is said of a request without either, nor by a schema that is itself not valid or
refers to another document, which is never fetched.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from tasks.metrics.exact_match import words
from tasks.metrics.metric import Answered, Metric, Score
from tasks.metrics.tool_call import calls

Schema = Mapping[str, Any] | bool


@dataclass(frozen=True)
class JSONSchema(Metric):
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    binary: ClassVar[bool] = True

    name: Literal["json_schema"] = "json_schema"

    def score(self, one: Answered) -> Score | None:
        functions = [tool.get("function", tool) for tool in one.tools]
        tools: dict[str, Schema] = {str(f.get("name")): f.get("parameters") or {} for f in functions}
        asked = _asked(one.row.get("response_format"))
        if asked is None and not tools:
            return None
        if not all(_sound(schema) for schema in [*tools.values(), *([] if asked is None else [asked])]):
            return None
        made = calls(one.answer)
        valid = all(name in tools and said is not None and _valid(said, tools[name]) for name, said in made)
        if asked is not None and not made:
            try:
                valid = _valid(json.loads(words(one.answer)), asked)
            except (ValueError, RecursionError):
                valid = False
        return Score(float(valid))


def _asked(response_format: Any) -> Schema | None:
    """The schema of the words that a request asks for (OpenAI's `response_format`), or None."""
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_object":
        return {"type": "object"}
    if response_format.get("type") == "json_schema" and isinstance(response_format.get("json_schema"), dict):
        schema: Schema = response_format["json_schema"].get("schema", {})
        return schema
    return None


def _sound(schema: Schema) -> bool:
    """Whether a schema is one, and complete in itself."""
    try:
        return isinstance(schema, dict | bool) and _is_schema(json.dumps(schema))
    except RecursionError:
        return False


@lru_cache(1024)  # to check one takes milliseconds, and nearly all requests of a workload have the same tools
def _is_schema(text: str) -> bool:
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    schema = json.loads(text)
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError:
        return False
    return all(str(target).startswith("#") for target in _references(schema))


def _references(schema: Any) -> list[Any]:
    if isinstance(schema, dict):
        own = [schema[key] for key in ("$ref", "$dynamicRef") if isinstance(schema.get(key), str)]
        return own + [target for inner in schema.values() for target in _references(inner)]
    return [target for inner in schema for target in _references(inner)] if isinstance(schema, list) else []


def _valid(value: Any, schema: Schema) -> bool:
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        return bool(validator_for(schema)(schema, registry=Registry()).is_valid(value))
    except (Unresolvable, RecursionError):
        return False
