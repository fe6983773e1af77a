from tasks.metrics.latency import latency, percentile, throughput


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(v) for v in range(20, 0, -1)]
    assert latency(values) == {"latency_p50_ms": 10.0, "latency_p95_ms": 19.0}
    assert latency([7.0]) == {"latency_p50_ms": 7.0, "latency_p95_ms": 7.0}
    assert latency([]) == {"latency_p50_ms": None, "latency_p95_ms": None}
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


def test_throughput_is_per_second_and_per_request() -> None:
    assert throughput(tokens=300, requests=20, seconds=4.0) == {"tokens_per_second": 75.0, "seconds_per_request": 0.2}
