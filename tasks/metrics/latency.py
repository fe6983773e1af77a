"""Latency and throughput of an engine, in milliseconds a request and tokens a second."""

from collections.abc import Sequence
from math import ceil


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def latency(milliseconds: Sequence[float]) -> dict[str, float | None]:
    """p50 and p95 of requests that were asked one at a time."""
    return {"latency_p50_ms": percentile(milliseconds, 0.50), "latency_p95_ms": percentile(milliseconds, 0.95)}


def throughput(tokens: int, requests: int, seconds: float) -> dict[str, float]:
    """Generated tokens a second and machine seconds a request, for requests asked several at a time."""
    return {"tokens_per_second": tokens / seconds, "seconds_per_request": seconds / requests}
