"""The way to an MLflow server or store: its client, its files, and one line for what goes wrong on the way."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from infra.settings import SetupError, settings

ENVIRONMENT = {
    # By itself MLflow retries a server that is gone for minutes, and prints links into our standard output.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Nor is a project in the working directory any business of a model's.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """MLflow's client; what goes wrong with the store or the way to it becomes one line.

    Raises:
        SetupError: Names the URI and where it was set.
    """
    _require_listener(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield _client(uri)
    except ModuleNotFoundError as problem:
        if problem.name != "boto3":
            raise
        raise SetupError(
            f"MLflow at {shown(uri)!r} keeps its files in S3, which needs boto3; pip install 'flywheel[s3]', or start "
            "the server with --artifacts-destination, and they go through it"
        ) from problem
    except (MlflowException, RequestException, SQLAlchemyError) as problem:
        first = str(problem).strip().splitlines()[0][:200]
        raise SetupError(f"MLflow at {shown(uri)!r} failed ({first}); {_way_out(uri)}") from problem


def _require_listener(uri: str) -> None:
    """Fail within three seconds where nothing listens: MLflow itself goes on trying for minutes."""
    address = urlsplit(uri)
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
    try:
        port = address.port or ports.get(address.scheme.partition("+")[0])
        if address.hostname and port:
            socket.create_connection((address.hostname, port), timeout=3).close()
    except (OSError, ValueError) as problem:
        raise SetupError(
            f"MLflow at {shown(uri)!r} cannot be reached ({problem}); start it, or {_way_out(uri)}"
        ) from problem


def _way_out(uri: str) -> str:
    if uri == settings().mlflow_uri:
        return "check FLYWHEEL_MLFLOW, or leave it empty for SQLite in the home"
    return "check the source's `uri`"


def shown(uri: str) -> str:
    """The URI without its password."""
    address = urlsplit(uri)
    return uri if address.password is None else uri.replace(f":{address.password}@", ":***@")


@cache
def _client(uri: str) -> Any:
    settings().home.mkdir(parents=True, exist_ok=True)
    import mlflow

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def local(location: str) -> Path | None:
    """The folder on this machine that an artifact location names, if it does and it is there."""
    address = urlsplit(location)
    if address.scheme not in ("", "file"):
        return None
    folder = Path(url2pathname(address.path) if address.scheme else unquote(location))
    return folder if folder.is_dir() else None


def download(location: str, folder: Path) -> None:
    """Fetch what lies at an artifact location into a folder, whole or not at all."""
    from mlflow.artifacts import download_artifacts

    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fetched = download_artifacts(location, dst_path=str(partial), tracking_uri=settings().mlflow_uri)
    shutil.rmtree(folder, ignore_errors=True)
    Path(fetched).rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
