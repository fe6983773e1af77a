"""The log of the gateway's process on standard error: lines of JSON for machines, of text for a terminal.

    {"ts": "2026-11-27T15:12:21.304Z", "level": "INFO", "logger": "flywheel.requests", "message": "POST /v1/chat/...",
     "request_id": "chatcmpl-...", "workload": "shop", "served_by": "champion", "status": 200, "ms": 12.3, ...}

All loggers of the process come out so, those of uvicorn and of the libraries too. What was said in a request, and
secrets, are in no message (`errors.py`); an exception comes as its kind and its frames, without its own message, in
which drivers put their statement's parameters.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from infra.database.jsontext import dumps
from infra.gateway.errors import trace
from infra.settings import settings

# What every record has; whatever else one has was given as `extra`.
PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class Lines(logging.Formatter):
    """A line of JSON a record."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "ts": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage(),
            **_extra(record),
        }  # fmt: skip
        if record.exc_info and record.exc_info[1]:
            said["exception"] = trace(record.exc_info[1])
        try:
            return dumps(said).decode()
        except (TypeError, ValueError):  # an `extra` of a library that is no JSON
            return dumps({name: str(value) for name, value in said.items()}).decode()


class Text(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        said = f"{_time(record)[11:19]} {record.levelname:<7} {record.getMessage()}{extra}"
        return f"{said}\n{trace(record.exc_info[1])}" if record.exc_info and record.exc_info[1] else said


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    # Libraries put marks of their own on every record (Ray's `_ray_timestamp_ns`), which nobody has asked for.
    return {name: value for name, value in vars(record).items() if name not in PLAIN and not name.startswith("_")}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure() -> None:
    """Send all loggers of this process to standard error, in the form that FLYWHEEL_LOG asks for."""
    chosen = settings().log or ("text" if sys.stderr.isatty() else "json")
    handler = logging.StreamHandler()
    handler.setFormatter(Text() if chosen == "text" else Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("flywheel", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # in no line of ours
