"""Word dropout: each epoch sees a question without some of its words, so that no few of them come to decide.

A small student on a few thousand questions soon knows each by a word or two, and the next customer uses others. This is
the word dropout of M. Iyyer et al., Deep Unordered Composition Rivals Syntactic Methods for Text Classification, 2015
(section 3.1), and the random deletion of J. Wei and K. Zou, EDA, 2019 (arXiv 1901.11196).

A word that the answer says, too, is never left out: it may be what has to be copied. A question is never emptied.
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Any

from infra.database.policy import parsed

Row = dict[str, Any]


def without(row: Row, share: float, rng: Random) -> Row | None:
    """A row whose questions lack about `share` of their words; None where none is left out.

    Args:
        row: As it is frozen in a dataset.
        share: How many of the words, of those that may be.
    """
    answer = said(row["expected"])
    messages = [
        {**message, "content": thinned(message["content"], share, answer, rng)}
        if message["role"] == "user" and isinstance(message.get("content"), str)
        else message
        for message in row["messages"]
    ]
    return {**row, "messages": messages} if messages != row["messages"] else None


def thinned(text: str, share: float, kept: set[str], rng: Random) -> str:
    """A text without some of its words, those of `kept` excepted."""
    parts = re.findall(r"\S+\s*", text)
    left = [part for part in parts if rng.random() >= share or not kept.isdisjoint(words(part))]
    return "".join(left).rstrip() if left and len(left) < len(parts) else text


def said(answer: Row) -> set[str]:
    """The words of an answer, and of what its calls are given."""
    given = [parsed(call["function"]["arguments"]) for call in answer.get("tool_calls") or []]
    return set(words(" ".join([answer.get("content") or "", *texts(given)])))


def texts(value: Any) -> Iterator[str]:
    """What is said in a JSON value, its keys included."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from texts(one)
    else:
        yield str(value)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
