"""Traces and assessments of an MLflow tracking server or store, read by MLflow's own client.

Each experiment is a part with a cursor. Traces come in the order in which they began, page by page. MLflow can search
them by when they began, not by when an assessment was made of them: so each reading goes back `lookback` days from the
latest trace that was read, and finds what was said there since (and traces that took long). What is there already
changes nothing. What is said of older traces is found with a larger `lookback`.

What of a trace is a record is in `infra/telemetry/mlflow.py`. A trace that cannot be understood lies in quarantine and
does not hold up the cursor.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.database.jsontext import Rejected, loads
from infra.database.records import Parsed
from infra.settings import SetupError, settings
from infra.telemetry.mlflow import SOURCE, rows
from infra.tracking import connected, shown
from tasks.sources.part import Entry

PAGE = 100
DAY_MS = 86_400_000


@dataclass(frozen=True)
class MLflow:
    """Experiments of an MLflow server.

    Attributes:
        uri: Its tracking URI, http(s) or of a database; without it that of FLYWHEEL_MLFLOW. Credentials come from
            MLflow's own environment variables.
        experiments: Names or ids; without any, all that have traces.
        workload: The workload of calls that name none; without it, the experiment's name.
        lookback: Days before the latest trace read that are read again.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    uri: Annotated[str, Field(description="Tracking URI; default that of FLYWHEEL_MLFLOW")] = ""
    experiments: Annotated[tuple[str, ...], Field(description="Names or ids of experiments; default all")] = ()
    name: Literal["mlflow"] = SOURCE
    workload: Annotated[str, Field(description="Workload of calls that name none; else the experiment")] = ""
    lookback: Annotated[int, Field(ge=1, description="Days before the latest trace that are read again")] = 7

    @property
    def address(self) -> str:
        return self.uri or settings().mlflow_uri

    def parts(self) -> list["Experiment"]:
        """The experiments.

        Raises:
            SetupError: The server cannot be reached, one does not exist, or none has traces.
        """
        file = self.address.removeprefix("sqlite:///")
        if file != self.address and not Path(file).exists():  # which MLflow would make
            raise SetupError(f"no MLflow store at {file!r}, it does not exist; name the source's `uri`")
        with connected(self.address) as client:
            if self.experiments:
                return [Experiment(self, *_named(client, name, self.address)) for name in self.experiments]
            found = [one for one in _all(client) if client.search_traces(locations=[one[0]], max_results=1)]
        if not found:
            raise SetupError(f"MLflow at {shown(self.address)!r} has no experiment with traces; name another `uri`")
        return [Experiment(self, *one) for one in found]

    def parse(self, raw: bytes, at: datetime) -> Iterator[Parsed]:
        """The records of a trace."""
        try:
            yield from rows(loads(raw), at, self.workload)
        except Rejected as problem:
            yield Parsed(raw, None, str(problem))


def _all(client: Any) -> Iterator[tuple[str, str]]:
    """Id and name of each experiment."""
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from ((one.experiment_id, one.name) for one in page)
        if not (token := page.token):
            return


def _named(client: Any, name: str, address: str) -> tuple[str, str]:
    found = client.get_experiment_by_name(name)
    if found is None and name.isdigit():
        found = next((one for one in _all(client) if one[0] == name), None)
        if found:
            return found  # type: ignore[no-any-return]
    if found is None:
        known = ", ".join(repr(one[1]) for one in list(_all(client))[:20])
        raise SetupError(f"experiment {name!r} does not exist at {shown(address)!r}; known are {known}")
    return found.experiment_id, found.name


class Experiment:
    """One experiment's traces: a `Part`."""

    def __init__(self, spec: MLflow, experiment: str, name: str) -> None:
        self.spec, self.experiment, self.name = spec, experiment, name
        key = hashlib.sha256(json.dumps([shown(spec.address), experiment]).encode()).hexdigest()
        self.cursor = f"{SOURCE}:{key[:32]}"
        self.label = f"experiment {name!r} of {shown(spec.address)}"
        self.kind: str = SOURCE
        self.size, self.skipped = None, 0  # nobody counts traces

    def read(self, position: Mapping[str, Any] | None) -> Iterator[Entry]:
        """The records of traces that began after `position`, and of `lookback` days before it.

        Raises:
            SetupError: The server cannot be reached any more.
        """
        until, known = (position["until"], position["rows"]) if position else (-1, 0)
        again = done = 0
        for trace in self._traces(max(0, until - self.spec.lookback * DAY_MS) if position else 0):
            began = trace.info.request_time
            entries = list(self._entries(trace))
            again += len(entries) * (began <= until)
            done += len(entries)
            after = {"until": max(until, began), "rows": known + done - again}
            for number, (where, parsed) in enumerate(entries, 1):
                digest = hashlib.sha256(parsed.raw).hexdigest()
                last = after if number == len(entries) else None
                yield Entry(where, parsed.raw, digest, parsed.row, parsed.reason, last, done)
        self.skipped = max(0, known - again)  # fewer than it was, where something was said since

    def _traces(self, since: int) -> Iterator[Any]:
        """Traces that began at `since` (ms since 1970) or later, in order."""
        token = None
        with connected(self.spec.address) as client:
            while True:
                page = client.search_traces(
                    locations=[self.experiment], filter_string=f"timestamp_ms >= {since}", max_results=PAGE,
                    order_by=["timestamp_ms ASC"], page_token=token,
                )  # fmt: skip
                # A page is in order of where its traces lie first.
                yield from sorted(page, key=lambda trace: (trace.info.request_time, trace.info.trace_id))
                if not (token := page.token):
                    return

    def _entries(self, trace: Any) -> Iterator[tuple[str, Parsed]]:
        trace.info.assessments = [one for one in trace.info.assessments if _is_json(getattr(one, "value", None))]
        document = trace.to_dict()
        document["info"].setdefault("trace_location", {}).setdefault("mlflow_experiment", {})["name"] = self.name
        at = datetime.fromtimestamp(trace.info.request_time / 1000, UTC)
        for parsed in self.spec.parse(json.dumps(document).encode(), at):
            yield f"trace {trace.info.trace_id}", parsed


def _is_json(value: Any) -> bool:
    """Whether MLflow can write it down: a score of NaN, which says nothing, it keeps but cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
