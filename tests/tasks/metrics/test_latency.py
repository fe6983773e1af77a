from tasks.metrics.latency import latency, percentile, token_latency


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(20, 0, -1)]
    assert latency(values) == {"latency_p50_ms": 10.0, "latency_p95_ms": 19.0}
    assert latency([7.0]) == {"latency_p50_ms": 7.0, "latency_p95_ms": 7.0}
    assert latency([]) == {"latency_p50_ms": None, "latency_p95_ms": None}
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


def test_to_the_first_token_and_per_token_after_it() -> None:
    timed = [(10.0, 40.0, 4), (20.0, 20.0, 1), (None, 99.0, 9)]
    assert token_latency(timed) == {
        "first_token_p50_ms": 10.0, "first_token_p95_ms": 20.0, "token_p50_ms": 10.0, "token_p95_ms": 10.0
    }  # fmt: skip
    assert set(token_latency([(None, 5.0, 2)]).values()) == {None}
