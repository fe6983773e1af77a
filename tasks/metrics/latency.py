"""Latency of an engine, in milliseconds: of a request, to its first token, and of each token after that."""

from collections.abc import Sequence
from math import ceil


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); None without values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def latency(milliseconds: Sequence[float], what: str = "latency") -> dict[str, float | None]:
    """p50 and p95 of requests that were asked one at a time."""
    return {f"{what}_p50_ms": percentile(milliseconds, 0.50), f"{what}_p95_ms": percentile(milliseconds, 0.95)}


def token_latency(timed: Sequence[tuple[float | None, float, int]]) -> dict[str, float | None]:
    """p50 and p95 to the first token, and of a token after it, of (first_token_ms, latency_ms, tokens) of requests.

    None where the engine does not say when the first token came.
    """
    known = [(first, late, tokens) for first, late, tokens in timed if first is not None]
    after = [(late - first) / (tokens - 1) for first, late, tokens in known if tokens > 1]
    return latency([first for first, _, _ in known], "first_token") | latency(after, "token")
