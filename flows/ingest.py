"""Sources → interactions and feedback."""

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

import tasks.ingest
from flows.stage import in_flow_run, stage
from flows.traffic import publish
from flows.watch import tell
from tasks.ingest import workloads
from tasks.sources import Source

ingest_stage = stage(tasks.ingest.ingest, retries=2)


@flow(name="ingest", flow_run_name="ingest-{source.name}")
def ingest(
    source: Annotated[Source, Field(description="Where the traffic and the feedback are")],
    redact: Annotated[
        str, Field(description="email,phone,card,iban,ip,key; all or none. Default FLYWHEEL_REDACT")
    ] = "",
) -> dict[str, Any]:
    """Read logged traffic and feedback into the database; what is there already changes nothing.

    As a run on a Prefect server it then measures, as `watch` does, whether a wheel should turn.

    Args:
        source: Where the traffic and the feedback are.
        redact: What is redacted before it is stored.
    """
    counts = ingest_stage(source, redact)
    if in_flow_run():
        publish()
        counts["signals"] = [signal for signal in tell(workloads()) if signal["fired"]]
    return counts
