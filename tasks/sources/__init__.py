"""The menu of sources: one line a place that telemetry and feedback come from."""

from typing import Annotated

from pydantic import Field

from tasks.menu import MENU
from tasks.sources.gateway import Gateway
from tasks.sources.jsonl import JSONL
from tasks.sources.langfuse import Langfuse
from tasks.sources.mlflow import MLflow
from tasks.sources.otel import OTel
from tasks.sources.quarantine import Quarantined
from tasks.sources.sql import SQL

Source = Annotated[JSONL | OTel | MLflow | Langfuse | SQL | Gateway | Quarantined, Field(discriminator="name"), MENU]
