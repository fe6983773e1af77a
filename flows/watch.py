"""Should a wheel turn? What `tasks/signals.py` measures, told to Prefect, whose automation starts the wheel."""

from typing import Annotated, Any

from prefect import flow
from prefect.events import emit_event
from pydantic import Field

from flows.stage import aligned, in_flow_run
from tasks.ingest import workloads
from tasks.signals import SignalSpec, due, signals, told


@flow(name="watch")
def watch(
    workload: Annotated[str | None, Field(description="Only this one; default: all")] = None,
    signal: SignalSpec = SignalSpec(),  # noqa: B008 (frozen)
) -> list[dict[str, Any]]:
    """Measure new feedback, drift and the champion's quality; as a run on a Prefect server, start the wheels it takes.

    Args:
        workload: Only this one; default: all.
        signal: What starts a wheel, and for how long after it nothing does.
    """
    return tell([workload] if workload else workloads(), signal)


def tell(names: list[str], spec: SignalSpec = SignalSpec()) -> list[dict[str, Any]]:  # noqa: B008 (frozen)
    """The signals of workloads; those that are due go out as events `flywheel.feedback`, `.drift` and `.quality`."""
    found = []
    for name in names:
        seen = signals(name, spec)
        found += [{"workload": name, **one} for one in seen]
        if in_flow_run() and (fired := due(name, seen, spec)):
            resource = {"prefect.resource.id": f"flywheel.workload.{name}", "prefect.resource.name": name}
            emit_event(f"flywheel.{fired['name']}", resource, payload={"workload": name, **fired})
            told(name, fired)
    return found


def render(found: list[dict[str, Any]]) -> str:
    rows = [
        {
            "workload": one["workload"], "signal": one["name"], "value": f"{one['value']:,g}",
            "threshold": f"{one['threshold']:,g}", "": "FIRED" if one["fired"] else "", "what": one["said"],
        }
        for one in found
    ]  # fmt: skip
    return "\n".join(aligned(rows)) or "no workload has traffic yet; `flywheel ingest` reads some"
