"""Registry → running server: what is to serve is loaded as it will be served, and the gateway seen to take it over."""

import logging
import time
from collections.abc import Callable
from typing import Any

from infra.rollout.spec import RolloutSpec
from infra.settings import SetupError

log = logging.getLogger("flywheel.redeploy")
Progress = Callable[[int, int, str], None]
WAIT_SECONDS = 60.0


def redeploy(
    workload: str,
    version: str | None = None,
    rollout: RolloutSpec = RolloutSpec(),  # noqa: B008 (frozen)
    abort: bool = False,
    *,
    progress: Progress | None = None,
    flow_run_id: str | None = None,
) -> dict[str, Any]:
    """Load what is to serve, let it answer once, and wait until the running gateway, if there is one, has it.

    What is to serve is the version that is under way, else the champion.

    Args:
        version: Begin with this registered version, by the steps of `rollout`; without steps it serves at once.
        abort: End what is under way instead; what served goes on serving.

    Returns:
        workload, version, engine, gateway: its address, or `not running`; where there has been a rollout, its
        `infra.rollout.story`; and `warning` where a person lets a version serve that did not pass the gate.

    Raises:
        SetupError: There is nothing to serve, or to abort; its files do not have the registered hash, it does not
            answer, or the gateway does not take it over in time.
    """
    from infra import promotions, registry
    from infra.rollout import state

    if abort:
        _abort(workload)
    elif version is not None:
        registry.version(workload, version)  # which says so if there is none, before anything has begun
        state.begin(workload, version, rollout, promotions.HAND, "asked for", flow_run_id)
    under_way = [standing.version for standing in state.running(workload)]
    if under_way:
        chosen: registry.Version | None = registry.version(workload, under_way[0])
    else:
        chosen = registry.champion(workload)
    if chosen is None and not abort:
        raise SetupError(f"{workload!r} has no champion; turn its wheel: flywheel run --workload {workload}")
    from infra import servers
    from infra.rollout.story import story

    gateway = servers.gateway()
    result: dict[str, Any] = {
        "workload": workload,
        "version": None,
        "engine": None,
        "gateway": gateway or "not running",
    }
    if chosen is not None and not under_way:
        warning = promotions.warning(promotions.notice(workload, chosen.version, "flow"))
        if warning:
            log.warning("%s", warning)
            result["warning"] = warning
    if chosen is not None:
        result |= {"version": chosen.version, "engine": tried(chosen, replace=not under_way)}
        if gateway:
            _wait_for(gateway, workload, chosen.version, progress)
    told = story(workload)
    return {**result, **({"rollout": told} if told else {})}


def tried(version: Any, replace: bool) -> str:
    """Load a version (`registry.Version`) and let it say something; the name of its engine. `replace` as of `load`.

    Raises:
        SetupError: It cannot be loaded, or says nothing.
    """
    from infra.engines import load
    from infra.engines.engine import ABSTAINED

    engine = load(version.folder, replace)
    try:
        (reply,) = engine.chat([{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}])
        if not reply.completion_tokens and reply.finish_reason != ABSTAINED:  # which is an answer, too
            raise SetupError(
                f"version {version.version} of {version.workload!r} says nothing; release --rollback undoes it"
            )
    finally:
        engine.close()
    return engine.name


def _abort(workload: str) -> None:
    from infra import registry
    from infra.rollout import state

    under_way = state.running(workload)
    if not under_way:
        raise SetupError(
            f"nothing of {workload!r} is under way; what serves is undone by `flywheel release --rollback --workload "
            f"{workload}`"
        )
    for standing in under_way:
        state.end(standing.id, state.ABORTED, "by hand")
        registry.unchallenge(workload, standing.version)


def _wait_for(gateway: str, workload: str, version: str, progress: Progress | None) -> None:
    import httpx

    started, served = time.monotonic(), None
    listed: dict[str, Any] = {"rollouts": {}, "problems": {workload: "it does not answer in time"}}
    while (waited := time.monotonic() - started) < WAIT_SECONDS:
        try:
            listed = httpx.get(f"{gateway}/v1/models", timeout=5).raise_for_status().json()
        except httpx.TimeoutException:  # busy, perhaps with loading this very version
            continue
        except httpx.HTTPError as problem:
            raise SetupError(
                f"the gateway at {gateway} does not answer ({problem!r}); restart `flywheel up`, or check "
                "FLYWHEEL_GATEWAY"
            ) from problem
        served = next((m["version"] for m in listed["data"] if m["id"] == workload), None)
        if version in (served, listed["rollouts"].get(workload, {}).get("version")):
            return
        if progress:
            progress(round(waited), round(WAIT_SECONDS), "waiting for the gateway")
        time.sleep(0.5)
    why = listed["problems"].get(workload, "see the gateway's log")
    raise SetupError(
        f"the gateway at {gateway} serves version {served} of {workload!r} after {WAIT_SECONDS:.0f} s, not {version}; "
        f"{why}"
    )
