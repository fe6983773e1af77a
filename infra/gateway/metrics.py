"""What the gateway counts, for Prometheus: `/metrics`.

Clients name workloads, and each name is a time series in whoever scrapes us. So the first MOST of them are told apart,
and those of champions always; all others are "other". What is refused before it is known whose it is has the name "".
"""

import time
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from infra.gateway import spool

if TYPE_CHECKING:
    from infra.gateway.calls import Gateway
    from infra.gateway.record import Call, Kept, Recorder

MOST = 100
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.workloads: set[str] = set()
        who = ("workload", "served_by")
        count, gauge = partial(Counter, registry=made), partial(Gauge, registry=made)
        seconds = partial(Histogram, registry=made, buckets=SECONDS)
        self.requests = count("flywheel_requests", "Calls for an answer, by what came of them", (*who, "outcome"))
        self.request_seconds = seconds("flywheel_request_seconds", "From a call's head to its answer's end", who)
        self.first_token_seconds = seconds("flywheel_first_token_seconds", "From a call's head to its first words", who)
        self.open_streams = gauge("flywheel_open_streams", "Streams that are on their way")
        self.feedback = count("flywheel_feedback", "Feedback that was taken", ("kind",))
        self.records = count("flywheel_records", "Records by what became of them; of spooled ones later", ("outcome",))
        for outcome in ("stored", "spooled", "quarantined", "lost"):
            self.records.labels(outcome)
        self.waiting = gauge("flywheel_records_waiting", "Records in memory on their way to the database")
        self.spool_bytes = gauge("flywheel_spool_bytes", "Bytes in the home's spool")
        self.database_up = gauge("flywheel_database_up", "Whether the database took rows when last asked")
        self.champion = gauge("flywheel_champion", "1 for the version that serves", ("workload", "version"))
        self.rollout = gauge("flywheel_rollout", "1 for a version under way", ("workload", "version", "step"))
        self.champion_failures = count("flywheel_champion_failures", "Answers a champion failed to give", ("workload",))

    def workload(self, name: str) -> str:
        """The label of a workload that a client has named."""
        if name not in self.workloads:
            if len(self.workloads) >= MOST:
                return "other"
            self.workloads.add(name)
        return name

    def watch(self, recorder: "Recorder") -> None:
        """Read what the recorder has whenever it is asked for."""
        self.waiting.set_function(lambda: len(recorder.queue) + len(recorder.hand))
        self.database_up.set_function(lambda: not recorder.away)
        self.spool_bytes.set_function(spool.size)

    def recorded(self, fate: "Kept") -> None:
        """Count a record; one that was there already has been counted."""
        if fate != "duplicate":
            self.records.labels(fate).inc()

    def ended(self, call: "Call", first: float | None) -> None:
        """Count a call whose answer has ended now and had begun at `first` (monotonic), if it was a stream."""
        workload = self.workload(call.workload)
        self.requests.labels(workload, call.served_by, call.outcome).inc()
        if call.served_by:
            self.request_seconds.labels(workload, call.served_by).observe(time.monotonic() - call.began)
            if first is not None:
                self.first_token_seconds.labels(workload, call.served_by).observe(first - call.began)

    def text(self, gateway: "Gateway") -> bytes:
        """All of it, as Prometheus reads it."""
        self.champion.clear()
        for workload, served in list(gateway.champions.served.items()):
            self.workloads.add(workload)
            self.champion.labels(workload, served.version).set(1)
        self.rollout.clear()
        for workload, trial in list(gateway.rollouts.trials.items()):
            self.rollout.labels(workload, trial.standing.version, str(trial.standing.step)).set(1)
        return generate_latest(self.registry)
