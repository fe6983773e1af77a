"""The menu of sources: one line a place that telemetry and feedback come from."""

from tasks.sources.jsonl import JSONL

Source = JSONL
