"""Prefect's API by plain HTTP, where a run of ours is not what is wanted: its client takes seconds to import.

PREFECT_API_URL says where it is; PREFECT_API_KEY and PREFECT_API_AUTH_STRING are heeded as Prefect's client does.
"""

import base64
import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from infra.settings import SetupError

SECONDS = 3.0


def address() -> str | None:
    """The API's address, or None where no server is configured (`flywheel up` on this home configures its own)."""
    return os.environ.get("PREFECT_API_URL", "").rstrip("/") or None


def shown(url: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def response(path: str, body: dict[str, Any] | None = None, seconds: float = SECONDS) -> httpx.Response:
    """What the API answers: to a POST where there is a body, else to a GET.

    Raises:
        SetupError: None is configured, it does not answer, or it refuses.
    """
    url = address()
    if url is None:
        raise SetupError("no Prefect server is configured; start `flywheel up`, or set PREFECT_API_URL")
    headers = {}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    elif login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    method = "GET" if body is None else "POST"
    try:
        answer = httpx.request(method, f"{url}{path}", json=body, headers=headers, timeout=seconds)
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise SetupError(
            f"Prefect at {shown(url)} does not answer ({type(problem).__name__}); start `flywheel up`, or check "
            "PREFECT_API_URL"
        ) from problem
    if not answer.is_success:
        raise SetupError(
            f"Prefect at {shown(url)} answers {answer.status_code} to {path}; check PREFECT_API_URL and key"
        )
    return answer


def runs(state: str, sort: str, limit: int = 20) -> list[dict[str, Any]]:
    """Flow runs of a state's type (SCHEDULED, FAILED ...) of our deployments, in the order that `sort` names."""
    wanted = {
        "flow_runs": {"state": {"type": {"any_": [state]}}}, "deployments": {"tags": {"all_": ["flywheel"]}},
        "sort": sort, "limit": limit,
    }  # fmt: skip
    found: list[dict[str, Any]] = response("/flow_runs/filter", wanted).json()
    return found


def deployments() -> list[dict[str, Any]]:
    """Our deployments."""
    found: list[dict[str, Any]] = response(
        "/deployments/filter", {"deployments": {"tags": {"all_": ["flywheel"]}}, "limit": 200}
    ).json()
    return found
