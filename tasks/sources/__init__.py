"""The menu of sources: one line a place that telemetry and feedback come from."""

from typing import Annotated

from pydantic import Field

from tasks.sources.gateway import Gateway
from tasks.sources.jsonl import JSONL
from tasks.sources.otel import OTel

Source = Annotated[JSONL | OTel | Gateway, Field(discriminator="name")]
