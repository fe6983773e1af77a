"""What the base learns before it meets the shop: other services' tools, and above all copying.

A tiny model names the right function early and copies argument values last, so most of this curriculum is spans that
must be copied letter by letter out of the prompt: random tools with random arguments, fields to be picked out,
lines to be repeated, between the templated traffic of services that are not the shop. None of the shop's tools or
answers occurs here, though people greet, thank and redirect things in the same words everywhere.
"""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from infra.seedling import phrases

Message = dict[str, Any]


def _call(name: str, arguments: dict[str, str]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }


class Vocabulary:
    """Words of the pretraining text, for names and values that no template foresaw."""

    def __init__(self, text: str) -> None:
        self.words: list[str] = sorted({w for w in re.findall(r"[a-z]{3,9}", text)})

    def word(self, rng: Random) -> str:
        return rng.choice(self.words)

    def phrase(self, rng: Random, longest: int = 4) -> str:
        words = [self.word(rng) for _ in range(rng.randint(1, longest))]
        style = rng.random()
        if style < 0.3:
            return " ".join(w.capitalize() for w in words)
        return " ".join(words).capitalize() if style < 0.4 else " ".join(words)


def value(rng: Random, vocabulary: Vocabulary) -> str:
    """Anything a customer may name: a number, code, date, address, e-mail, person, title or nonsense."""
    makers: tuple[Callable[[Random], str], ...] = (
        lambda r: phrases.digits(r, 1, 8), lambda r: phrases.digits(r, 4, 6), phrases.code, phrases.email, phrases.date,
        phrases.address, phrases.person, phrases.amount, phrases.time_of_day, lambda r: r.choice(phrases.CITIES),
        lambda r: phrases.letters(r, 3, 9), vocabulary.phrase, vocabulary.phrase, vocabulary.phrase, vocabulary.phrase,
    )  # fmt: skip
    return rng.choice(makers)(rng)


_DATA: dict[str, list[dict[str, Any]]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def _make(kind: str, rng: Random, vocabulary: Vocabulary) -> str:
    """A value of one of the kinds that `services.toml` names; `number5` is five digits, `phrase` up to five words."""
    if kind.startswith("number"):
        return phrases.digits(rng, int(kind[-1]), int(kind[-1]))
    makers: dict[str, Callable[[], str]] = {
        "city": lambda: rng.choice(phrases.CITIES),
        "date": lambda: phrases.date(rng),
        "code": lambda: phrases.code(rng),
        "seat": lambda: f"{rng.randint(1, 40)}{rng.choice('ABCDEF')}",
        "flight": lambda: f"{phrases.letters(rng, 2, 2).upper()}{phrases.digits(rng, 3, 4)}",
        "small": lambda: str(rng.randint(2, 30)),
        "time": lambda: phrases.time_of_day(rng),
        "amount": lambda: phrases.amount(rng),
        "person": lambda: phrases.person(rng),
        "email": lambda: phrases.email(rng),
        "address": lambda: phrases.address(rng),
        "phone": lambda: f"0{phrases.digits(rng, 8, 10)}",
        "word": lambda: vocabulary.word(rng),
        "thing": lambda: vocabulary.phrase(rng, 2),
        "title": lambda: vocabulary.phrase(rng),
        "phrase": lambda: vocabulary.phrase(rng, 5).lower(),
    }
    return makers[kind]()


def service_call(rng: Random, vocabulary: Vocabulary) -> list[Message]:
    """A call to one of the known services; its system line names the service, its tools stay unsaid."""
    tool = rng.choice(_DATA["tools"])
    system = {"role": "system", "content": f"You are the assistant of a {tool['service']}."}
    if rng.random() < 0.15:
        talk = rng.choice(_DATA["talk"])
        said = phrases.say(talk["ask"], {"phrase": vocabulary.phrase(rng, 5).lower()}, rng)
        return [system, {"role": "user", "content": said}, {"role": "assistant", "content": talk["answer"]}]
    values = {argument: _make(kind, rng, vocabulary) for argument, kind in tool["arguments"].items()}
    said = phrases.say(rng.choice(tool["phrasings"]), values, rng)
    return [system, {"role": "user", "content": said}, _call(tool["name"], values)]


def random_tool(rng: Random, vocabulary: Vocabulary) -> list[Message]:
    """A call to one of several tools with random names and arguments, declared in the system line."""
    tools = [
        (f"{vocabulary.word(rng)}_{vocabulary.word(rng)}", [vocabulary.word(rng) for _ in range(rng.randint(1, 3))])
        for _ in range(rng.randint(1, 3))
    ]
    name, arguments = rng.choice(tools)
    system = "; ".join(f"{n}({', '.join(a)})" for n, a in tools)
    values = {a: value(rng, vocabulary) for a in arguments}
    said = [f"{a}{rng.choice((' ', ': ', ' is ', ' = '))}{v}" for a, v in values.items()]
    rng.shuffle(said)
    filler = vocabulary.phrase(rng, 3).lower()
    asked = f"{name.replace('_', ' ')} {rng.choice(('', filler + ' ', 'please ', 'with '))}"
    user = asked + rng.choice((", ", " and ", "; ")).join(said)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}, _call(name, values)]


def copying(rng: Random, vocabulary: Vocabulary) -> list[Message]:
    """Repeat a line, pick a quoted span, or look up a field: nothing but copying."""
    kind = rng.randrange(3)
    if kind == 0:
        text = " ".join(value(rng, vocabulary) for _ in range(rng.randint(1, 3)))
        return [{"role": "user", "content": f"repeat: {text}"}, {"role": "assistant", "content": text}]
    if kind == 1:
        span = value(rng, vocabulary)
        before, after = vocabulary.phrase(rng, 5), vocabulary.phrase(rng, 5)
        return [{"role": "user", "content": f'{before} "{span}" {after}'}, {"role": "assistant", "content": span}]
    fields = {vocabulary.word(rng): value(rng, vocabulary) for _ in range(rng.randint(2, 4))}
    wanted = rng.sample(sorted(fields), k=rng.randint(1, min(2, len(fields))))
    listing = ", ".join(f"{k}: {v}" for k, v in fields.items())
    answer = json.dumps({k: fields[k] for k in wanted}, ensure_ascii=False)
    return [{"role": "user", "content": f"{listing}. {' '.join(wanted)}?"}, {"role": "assistant", "content": answer}]


def lesson(rng: Random, vocabulary: Vocabulary) -> list[Message]:
    """One conversation of the curriculum: 50 % services, 20 % random tools, 30 % plain copying."""
    kind = rng.random()
    if kind < 0.5:
        return service_call(rng, vocabulary)
    return random_tool(rng, vocabulary) if kind < 0.7 else copying(rng, vocabulary)
