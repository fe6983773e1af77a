"""Mentions replaced: argument values that a question says word for word become others, in question and call alike.

A small student learns the few hundred names of its traffic by heart, and not to copy the next one. So each epoch may
see other names: a value of the same argument of the same function from another row, or one that nobody has heard yet,
put together from the words of such values. These are "mention replacement" and "label-wise token replacement" in X. Dai
and H. Adel, An Analysis of Simple Data Augmentation for Named Entity Recognition, 2020 (arXiv 2010.11683, section 3).

How often it is unheard is how often the next customer's will be: N₁ / N, the share of an argument's mentions whose
value occurs once (I. J. Good, The Population Frequencies of Species, Biometrika 40, 1953). So a song's title often is
and a month never. Words of any kind in that place were tried first: they taught that a country may be called anything.

A value is a mention where it stands once in the conversation, in a message of the user's, between word boundaries. A
row is varied only if each value of its calls is one, so that no value is left behind that followed from another (a code
from a city's name); nested arguments are left as they are.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

Row = dict[str, Any]
Slot = tuple[str, str]


class Mention(NamedTuple):
    """A value that the question says: whose it is, in which message, and from where to where."""

    call: int
    slot: Slot
    message: int
    start: int
    end: int


class Mentions:
    """The mentions of some rows, and what may stand in their place.

    Args:
        rows: As they are frozen in a dataset.
        share: How many of the mentions are replaced in an epoch.
        seed: Of the choice, together with epoch and row.
    """

    def __init__(self, rows: Sequence[Row], share: float, seed: int) -> None:
        self.rows, self.share, self.seed = rows, share, seed
        self.found = [mentions(row) for row in rows]
        self.values: dict[Slot, Counter[str]] = defaultdict(Counter)
        for row, found in zip(rows, self.found, strict=True):
            for mention in found:
                self.values[mention.slot][said(row, mention)] += 1
        self.pool = {slot: sorted(values) for slot, values in self.values.items()}
        self.words = {slot: [word for value in pool for word in value.split()] for slot, pool in self.pool.items()}

    def varied(self, number: int, epoch: int) -> Row | None:
        """A row as this epoch sees it; None where it stays as it is."""
        row, found = self.rows[number], self.found[number]
        rng = Random(f"{self.seed}:{epoch}:{number}:mentions")
        chosen = [(mention, self.other(mention.slot, rng)) for mention in found if rng.random() < self.share]
        return replaced(row, chosen) if chosen else None

    def other(self, slot: Slot, rng: Random) -> str:
        """What stands in a mention's place."""
        value = rng.choice(self.pool[slot])
        if rng.random() >= unheard(self.values[slot]):
            return value
        return " ".join(rng.choice(self.words[slot]) for _ in value.split())


def unheard(values: Counter[str]) -> float:
    """The probability that the next value is one that did not occur yet."""
    return sum(times == 1 for times in values.values()) / values.total()


def mentions(row: Row) -> list[Mention]:
    """A row's mentions, in the order of the calls; none where a value of its calls is not one, or two overlap."""
    found: list[Mention] = []
    for number, call in enumerate(row["expected"].get("tool_calls") or []):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"])
        except ValueError:
            return []
        if not isinstance(arguments, dict):
            return []
        for name, value in arguments.items():
            place = where(row["messages"], value) if isinstance(value, str) else None
            if place is None:
                return []
            found.append(Mention(number, (function["name"], name), *place))
    spans = sorted(mention[2:] for mention in found)
    apart = all(one[0] != two[0] or one[2] <= two[1] for one, two in pairwise(spans))
    return found if apart else []


def where(messages: Sequence[Row], value: str) -> tuple[int, int, int] | None:
    """Where a conversation says a value (message, start, end); None where it does not, or more than once."""
    whole = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
    if not value.strip():
        return None
    places = [
        (number, match.start(), match.end())
        for number, message in enumerate(messages)
        if isinstance(message.get("content"), str)
        for match in whole.finditer(message["content"])
    ]
    return places[0] if len(places) == 1 and messages[places[0][0]]["role"] == "user" else None


def said(row: Row, mention: Mention) -> str:
    text: str = row["messages"][mention.message]["content"]
    return text[mention.start : mention.end]


def replaced(row: Row, chosen: Sequence[tuple[Mention, str]]) -> Row:
    """A row with other values in the place of some mentions."""
    messages = [dict(message) for message in row["messages"]]
    calls = [{**call, "function": dict(call["function"])} for call in row["expected"]["tool_calls"]]
    for mention, value in sorted(chosen, key=lambda c: c[0].start, reverse=True):  # the last first: places stay true
        text = messages[mention.message]["content"]
        messages[mention.message]["content"] = text[: mention.start] + value + text[mention.end :]
    for number, call in enumerate(calls):
        values = {mention.slot[1]: value for mention, value in chosen if mention.call == number}
        if values:
            arguments = json.loads(call["function"]["arguments"]) | values
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {**row, "messages": messages, "expected": {**row["expected"], "tool_calls": calls}}
