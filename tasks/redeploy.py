"""Registry alias → running server: the champion is loaded as it will be served, and the gateway seen to serve it."""

import logging
import time
from collections.abc import Callable
from typing import Any

from infra.settings import SetupError

log = logging.getLogger("flywheel.redeploy")
Progress = Callable[[int, int, str], None]
WAIT_SECONDS = 60.0


def redeploy(workload: str, *, progress: Progress | None = None, flow_run_id: str | None = None) -> dict[str, Any]:
    """Load the champion, let it answer once, and wait until the running gateway, if there is one, serves it.

    Returns:
        workload, version, engine, gateway: its address, or `not running`; and `warning` where a person lets a version
        serve that did not pass the gate.

    Raises:
        SetupError: There is no champion, its files do not have the registered hash, it does not answer, or the
            gateway does not take it over in time.
    """
    from infra import promotions, registry
    from infra.engines import load
    from infra.engines.engine import ABSTAINED
    from infra.servers import running

    champion = registry.champion(workload)
    if champion is None:
        raise SetupError(f"{workload!r} has no champion; turn its wheel: flywheel run --workload {workload}")
    warning = promotions.warning(promotions.notice(workload, champion.version, "flow"))
    if warning:
        log.warning("%s", warning)
    engine = load(champion.folder)
    try:
        (reply,) = engine.chat([{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}])
        if not reply.completion_tokens and reply.finish_reason != ABSTAINED:  # which is an answer, too
            raise SetupError(f"version {champion.version} of {workload!r} says nothing; release --rollback undoes it")
    finally:
        engine.close()
    gateway = running().get("gateway")
    if gateway:
        _wait_for(gateway, workload, champion.version, progress)
    return {
        "workload": workload, "version": champion.version, "engine": engine.name, "gateway": gateway or "not running",
        **({"warning": warning} if warning else {}),
    }  # fmt: skip


def _wait_for(gateway: str, workload: str, version: str, progress: Progress | None) -> None:
    import httpx

    started, served = time.monotonic(), None
    while (waited := time.monotonic() - started) < WAIT_SECONDS:
        try:
            models = httpx.get(f"{gateway}/v1/models", timeout=5).raise_for_status().json()["data"]
        except httpx.HTTPError as problem:
            raise SetupError(
                f"the gateway at {gateway} does not answer ({problem!r}); restart `flywheel up`"
            ) from problem
        served = next((m["version"] for m in models if m["id"] == workload), None)
        if served == version:
            return
        if progress:
            progress(round(waited), round(WAIT_SECONDS), "waiting for the gateway")
        time.sleep(0.5)
    raise SetupError(
        f"the gateway at {gateway} serves version {served} of {workload!r} after {WAIT_SECONDS:.0f} s, not {version}; "
        "see gateway.log in the home's logs"
    )
