"""Sources → interactions and feedback."""

from typing import Annotated, Any

import tasks.ingest
from prefect import flow
from pydantic import Field
from tasks.sources import Source

from flows.stage import stage

ingest_stage = stage(tasks.ingest.ingest, retries=2)


@flow(name="ingest", flow_run_name="ingest-{source.name}")
def ingest(source: Annotated[Source, Field(description="Where the traffic and the feedback are")]) -> dict[str, Any]:
    """Read logged traffic and feedback into the database; what is there already changes nothing."""
    return ingest_stage(source)
