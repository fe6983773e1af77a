from tasks.metrics.throughput import throughput


def test_throughput_is_per_second_and_per_request() -> None:
    assert throughput(tokens=300, requests=20, seconds=4.0) == {"tokens_per_second": 75.0, "seconds_per_request": 0.2}
