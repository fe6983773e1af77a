"""A log of the simulated shop in which a teacher that is always right answered."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from infra.seedling import shop

WORKLOAD = "shop.assistant"


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
