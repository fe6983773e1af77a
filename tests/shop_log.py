"""Logs of the simulated shop: one in which a teacher that is always right answered, and a smaller one for the docs."""

import gzip
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from infra.seedling import shop

WORKLOAD = "shop.assistant"
ORDERS = "shop.order"


def write_log(path: Path, seed: int, conversations: int, day: int) -> Path:
    """Write the log of one day; returns its path."""
    at = datetime(2026, 11, day, 9, tzinfo=UTC)
    prompt = {"role": "system", "content": shop.SYSTEM}
    with path.open("w") as file:
        for n, exchange in enumerate(shop.exchanges(seed, conversations, "train")):
            messages: list[dict[str, Any]] = [prompt]
            for turn, (said, right) in enumerate(exchange.turns):
                messages = [*messages, {"role": "user", "content": said}]
                record = {
                    "id": f"{seed}-{n}-{turn}", "conversation_id": f"{seed}-{n}", "workload_id": WORKLOAD,
                    "timestamp": (at + timedelta(seconds=30 * n + turn)).timestamp(),
                    "request": {"model": "big", "messages": messages, "tools": shop.tool_schemas()},
                    "response": {"choices": [{"index": 0, "message": right, "finish_reason": "stop"}]},
                }  # fmt: skip
                file.write(json.dumps(record) + "\n")
                messages.append(right)
    return path


def asks_order(said: str) -> list[dict[str, str]]:
    """The messages of a request of the small job."""
    prompt = "Give the order number in this message, and nothing else."
    return [{"role": "system", "content": prompt}, {"role": "user", "content": said}]


def write_orders(folder: Path, seed: int, messages: int) -> None:
    """Write the two days' log of a small job that is quickly learned, and a file of feedback beside `folder`.

    One answer in twenty lacks a digit, and a clerk has corrected it; one record has no response.
    """
    at = datetime(2026, 11, 2, 9, tzinfo=UTC)
    said = (exchange.turns[0][0] for exchange in shop.exchanges(seed, 10 * messages, "train"))
    numbers = [(text, found[0]) for text in said if len(found := re.findall(r"\b\d{5,6}\b", text)) == 1]
    days: list[list[dict[str, Any]]] = [[], []]
    opinions = []
    for n, (text, number) in enumerate(numbers[:messages]):
        late = n >= messages // 2
        then = at + timedelta(days=late, seconds=60 * n)
        answer = number[:-1] if n % 20 == 7 else number
        response = {
            "model": "big", "usage": {"prompt_tokens": 30 + len(text) // 4, "completion_tokens": 6},
            "choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        }  # fmt: skip
        record = {
            "id": f"order-{n}", "timestamp": then.timestamp(), "workload_id": ORDERS, "client_id": f"customer-{n % 89}",
            "request": {"model": "big", "messages": asks_order(text)}, "latency_ms": 700 + n,
        }  # fmt: skip
        days[late].append(record if n == 100 else {**record, "response": response})
        opinion = {"record_id": f"order-{n}", "timestamp": (then + timedelta(hours=1)).timestamp()}
        if answer != number:
            opinions.append({**opinion, "kind": "correction", "value": number})
        elif n % 6 == 0:
            opinions.append({**opinion, "kind": "thumb", "value": 1})
    for name, records in zip(("monday", "tuesday"), days, strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with gzip.open(folder.parent / "feedback.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(opinion) + "\n" for opinion in opinions)
