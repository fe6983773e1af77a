"""The menu of item metrics: each says of one answer whether it is right."""

from collections.abc import Callable
from typing import Any

from tasks.metrics.exact_match import exact_match
from tasks.metrics.quality import quality
from tasks.metrics.tool_call import tool_call

METRICS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "quality": quality,
    "exact_match": exact_match,
    "tool_call": tool_call,
}
