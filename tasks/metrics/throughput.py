"""Throughput of an engine: tokens a second, and machine seconds a request."""


def throughput(tokens: int, requests: int, seconds: float) -> dict[str, float]:
    """Generated tokens a second and machine seconds a request, for requests asked several at a time."""
    return {"tokens_per_second": tokens / seconds, "seconds_per_request": seconds / requests}
