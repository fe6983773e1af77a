"""A day at the shop: customers write to the gateway, and some say what they think of the answer.

Each customer speaks through the same `/v1/chat/completions` and `/v1/feedback` that any application would use. The
last quarter of the day, the evening, is spoken in holdout phrasings, which no earlier customer uses. The feedback is
simulated: a wrong answer is corrected or disliked by a little over half of those who get one, a right one is praised by
one in eight, and one customer in two hundred presses the wrong thumb. In the evening a clerk reads along and corrects
every wrong answer, as a team labels a sample to judge by: else the teacher would be its own yardstick.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import httpx

from infra.seedling import shop

WORKLOAD = "shop.assistant"
Progress = Callable[[int, int, str], None]


def same(answer: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether an answer does what the customer asked: the same call, or words where words are due."""
    given, due = _call(answer), _call(right)
    return given == due if due else given is None and (answer.get("content") or "").strip() == right["content"]


def _call(message: dict[str, Any]) -> tuple[str, Any] | None:
    if not message.get("tool_calls"):
        return None
    function = message["tool_calls"][0]["function"]
    try:
        return function["name"], json.loads(function["arguments"])
    except ValueError:
        return function["name"], None


async def day(
    client: httpx.AsyncClient, seed: int, conversations: int, progress: Progress | None = None
) -> dict[str, int]:
    """Let `conversations` customers talk to the gateway behind `client`, 16 at a time.

    Returns:
        Counts: requests, right answers (by the shop's own knowledge), feedback by kind.
    """
    counts: Counter[str] = Counter()
    turn = asyncio.Semaphore(16)
    tools = shop.tool_schemas()
    evening = round(conversations * 0.25)

    async def talk(number: int, exchange: shop.Exchange, read_along: bool) -> None:
        rng = Random(f"{seed}:{number}")
        messages: list[dict[str, Any]] = [{"role": "system", "content": shop.SYSTEM}]
        headers = {"x-flywheel-client": f"web-{number % 7}", "x-flywheel-conversation": f"day-{seed}-{number}"}
        async with turn:
            for said, right in exchange.turns:
                messages.append({"role": "user", "content": said})
                body = {"model": WORKLOAD, "messages": messages, "tools": tools, "temperature": 0}
                response = await client.post("/v1/chat/completions", json=body, headers=headers)
                response.raise_for_status()
                record, answer = response.json()["id"], response.json()["choices"][0]["message"]
                good = same(answer, right)
                counts.update(requests=1, right=int(good))
                opinion = feedback(rng, good, right)
                if read_along and not good:
                    opinion = {"kind": "correction", "value": right}
                if opinion:
                    counts[opinion["kind"]] += 1
                    (await client.post("/v1/feedback", json={"record_id": record, **opinion})).raise_for_status()
                messages.append(answer)
        counts["conversations"] += 1
        if progress:
            progress(counts["conversations"], conversations, "customers served")

    daytime = shop.exchanges(seed * 2, conversations - evening, "train")
    await asyncio.gather(*(talk(i, e, False) for i, e in enumerate(daytime)))
    spoken = shop.exchanges(seed * 2 + 1, evening, "holdout")
    await asyncio.gather(*(talk(conversations - evening + i, e, True) for i, e in enumerate(spoken)))
    return dict(counts)


def feedback(rng: Random, good: bool, right: dict[str, Any]) -> dict[str, Any] | None:
    """What a customer says about an answer, if anything."""
    luck = rng.random()
    if luck < 0.005:
        return {"kind": "thumb", "value": -1 if good else 1}
    if good:
        return {"kind": "thumb", "value": 1} if luck < 0.125 else None
    if luck < 0.35:
        return {"kind": "correction", "value": right}
    return {"kind": "thumb", "value": -1} if luck < 0.56 else None
