"""A menu of specs as Prefect's form shows one: each choice a tab with its own fields."""

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Menu:
    """An annotation beside `Field(discriminator="name")`, which goes on judging what comes in.

    The form draws `anyOf` as tabs and `oneOf`, which pydantic writes for a discriminated union, as raw JSON.
    """

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        choices: list[dict[str, Any]] = []
        for choice in schema.get("anyOf", [schema]):
            choices += choice.get("oneOf", [choice])
        if choices == [schema]:
            return schema
        rest = {key: value for key, value in schema.items() if key not in ("oneOf", "anyOf", "discriminator")}
        return {**rest, "anyOf": choices}


MENU = Menu()
