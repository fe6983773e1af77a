"""The simulated shop: phrasings that stay apart, answers that can be copied out of the message."""

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from random import Random

from infra.seedling import phrases, services, shop


def test_the_same_seed_gives_the_same_day() -> None:
    assert list(shop.exchanges(3, 50, "train")) == list(shop.exchanges(3, 50, "train"))
    assert list(shop.exchanges(3, 50, "train")) != list(shop.exchanges(4, 50, "train"))


def readings(templates: Iterable[str]) -> set[tuple[str, ...]]:
    """Readings of templates as bare words, each slot a blank."""
    rng = Random(0)
    texts = {phrases.expand(template, rng) for template in templates for _ in range(40)}
    return {tuple(re.findall(r"[a-z']+|_", re.sub(r"\{\w+\}", "_", text).lower())) for text in texts}


def test_no_phrasing_is_in_both_parts() -> None:
    def templates(part: int) -> set[str]:
        tools = {t for tool in shop.TOOLS for t in (tool.train, tool.holdout)[part]}
        talk = {t for entry in (*shop.TALK, *shop.INCOMPLETE) for t in (entry.train, entry.holdout)[part]}
        return tools | talk

    assert not templates(0) & templates(1)
    assert not readings(templates(0)) & readings(templates(1))
    assert {e.template for e in shop.exchanges(0, 2000, "holdout")} <= templates(1)


def test_the_base_has_seen_no_tool_and_no_answer_of_the_shop() -> None:
    base = tomllib.loads(Path(services.__file__).with_suffix(".toml").read_text())
    assert not {tool.name for tool in shop.TOOLS} & {tool["name"] for tool in base["tools"]}
    assert not {talk.answer for talk in shop.TALK} & {talk["answer"] for talk in base["talk"]}


def test_every_argument_stands_in_the_conversation_letter_by_letter() -> None:
    for exchange in shop.exchanges(5, 1000, "train"):
        said = "\n".join(text for text, _ in exchange.turns)
        for _, answer in exchange.turns:
            for call in answer.get("tool_calls", ()):
                for value in json.loads(call["function"]["arguments"]).values():
                    assert value in said


def test_at_least_15_percent_of_requests_need_no_tool() -> None:
    answers = [answer for e in shop.exchanges(6, 2000, "train") for _, answer in e.turns]
    words = sum("tool_calls" not in a for a in answers) / len(answers)
    assert 0.15 <= words <= 0.5


def test_typos_leave_values_alone() -> None:
    rng = Random(0)
    said = [
        phrases.say("Please track order {order_id} quickly", {"order_id": "48213"}, rng, typos=1.0) for _ in range(300)
    ]
    assert all("48213" in text for text in said)
    assert sum("please track order" not in text.lower() or "quickly" not in text for text in said) > 250
