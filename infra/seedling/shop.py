"""The simulated shop: what its customers write, and what the right answer is.

Fourteen tools, eight kinds of talk that no tool answers, questions that lack their order number (the assistant asks,
the customer replies, the call follows). Each intent has phrasings for training and phrasings for the holdout, in
`shop.toml`; the two lists share no template. Everything is drawn from one seed.
"""

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from infra.seedling import phrases

SYSTEM = (
    "You are the assistant of Fern & Fable, a small shop for home and garden. Call the tool that does what the "
    "customer asks, copying argument values from their words. If no tool applies, answer briefly in words. "
    "Never invent a value."
)
ASK_NUMBER = "Which order number is it?"

Part = Literal["train", "holdout"]


@dataclass(frozen=True)
class Intent:
    """Something customers want, and how they say it.

    Attributes:
        train: Phrasings that may appear in training traffic.
        holdout: Phrasings that appear nowhere in training traffic.
    """

    train: tuple[str, ...]
    holdout: tuple[str, ...]

    def template(self, rng: Random, part: Part) -> str:
        return rng.choice(self.train if part == "train" else self.holdout)


@dataclass(frozen=True)
class Tool(Intent):
    """One function of the shop; its arguments are strings."""

    name: str
    description: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Talk(Intent):
    """Talk that no tool answers, and the words that do."""

    answer: str


@dataclass(frozen=True)
class Incomplete(Intent):
    """A request for `tool` that lacks its order number."""

    tool: str


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
TOOLS = tuple(Tool(**_tuples(entry)) for entry in _DATA["tools"])
TALK = tuple(Talk(**_tuples(entry)) for entry in _DATA["talk"])
INCOMPLETE = tuple(Incomplete(**_tuples(entry)) for entry in _DATA["incomplete"])
NUMBER = Intent(**_tuples(_DATA["number"]))
WORDS: dict[str, list[str]] = _DATA["words"]


def product(rng: Random) -> str:
    name = rng.choice(WORDS["products"])
    return f"{rng.choice(WORDS['colours'])} {name}" if rng.random() < 0.35 else name


def order_number(rng: Random) -> str:
    return phrases.digits(rng, 5, 6)


VALUES: dict[str, Callable[[Random], str]] = {
    "order_id": order_number,
    "address": phrases.address,
    "item": product,
    "reason": lambda rng: rng.choice(WORDS["reasons"]),
    "query": product,
    "max_price": lambda rng: str(rng.randint(8, 250)),
    "code": phrases.code,
    "date": phrases.date,
    "email": phrases.email,
    "message": lambda rng: f"{rng.choice(WORDS['notes'])}{rng.choice(('', ' ' + rng.choice(phrases.FIRST)))}",
    "quantity": lambda rng: str(rng.randint(2, 20)),
}


@dataclass(frozen=True)
class Exchange:
    """One customer's conversation with the answer that is right at each turn.

    Attributes:
        turns: (customer's message, assistant message in OpenAI form) in order.
        template: The phrasing that opened it, to prove that holdout phrasings stay out of training.
    """

    turns: tuple[tuple[str, dict[str, Any]], ...]
    template: str


def tool_schemas() -> list[dict[str, Any]]:
    """The tools in OpenAI form; all arguments are strings copied from the customer's words."""
    return [{"type": "function", "function": _schema(tool)} for tool in TOOLS]


def _schema(tool: Tool) -> dict[str, Any]:
    properties = {argument: {"type": "string"} for argument in tool.arguments}
    parameters = {"type": "object", "properties": properties, "required": list(tool.arguments)}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    """An assistant message in OpenAI form that calls one tool."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    called = {"id": "call_0", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


def words(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def exchange(rng: Random, part: Part) -> Exchange:
    """One conversation: 66 % a tool call, 22 % talk, 12 % a call whose number must be asked for first."""
    kind = rng.random()
    if kind < 0.66:
        tool = rng.choice(TOOLS)
        template = tool.template(rng, part)
        values = {a: VALUES[a](rng) for a in tool.arguments}
        return Exchange(((phrases.say(template, values, rng), call(tool.name, values)),), template)
    if kind < 0.88:
        talk = rng.choice(TALK)
        template = talk.template(rng, part)
        values = {"name": rng.choice(phrases.FIRST), "city": rng.choice(phrases.CITIES), "date": phrases.date(rng)}
        return Exchange(((phrases.say(template, values, rng), words(talk.answer)),), template)
    incomplete = rng.choice(INCOMPLETE)
    template = incomplete.template(rng, part)
    number = {"order_id": order_number(rng)}
    reply = phrases.say(NUMBER.template(rng, part), number, rng)
    asked = (phrases.say(template, {}, rng), words(ASK_NUMBER))
    return Exchange((asked, (reply, call(incomplete.tool, number))), template)


def exchanges(seed: int, count: int, part: Part) -> Iterator[Exchange]:
    """`count` conversations, the same for the same seed."""
    rng = Random(seed)
    for _ in range(count):
        yield exchange(rng, part)
