"""A day at the simulated shop, and one turn of the wheel on what it left behind."""

import asyncio
import sys
import time
from typing import Annotated, Any

from pydantic import Field

from flows.stage import Bar

COMMAND = ".venv/bin/flywheel"
# Wider than the gate's default of 3 points: one evening is too short to prove that of a student 2 points behind.
MARGIN = 0.06
MAX_STEPS = 1000  # the traffic grows day by day, the time for it does not


def demo(
    conversations: Annotated[int, Field(ge=400, le=20000, description="Customers in the day")] = 2200,
) -> dict[str, Any]:
    """Simulated customers talk to the teacher (or, from the second day on, to the champion); then the wheel turns."""
    from infra.seedling.simulate import WORKLOAD
    from infra.settings import settings

    started = time.monotonic()
    day = next(n for n in range(1, 10**6) if not (settings().home / "demo" / f"day-{n}").exists())
    say(f"Day {day}. {conversations} customers of a small shop write to its assistant.")
    say(f"Everything lives in {settings().home}.")
    counts = asyncio.run(open_shop(day, conversations))
    marker = settings().home / "demo" / f"day-{day}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    voiced = ", ".join(f"{counts.get(kind, 0)} {kind}s" for kind in ("thumb", "correction"))
    right = counts["right"] / counts["requests"]
    say(f"{counts['requests']} requests answered and recorded, {right:.1%} of them right; feedback: {voiced}.")

    say("The wheel turns: curate, distill, quantize, evaluate, gate, register, serve.")

    from flows.flywheel import flywheel
    from tasks.release import GateSpec
    from tasks.students import Causal

    result = flywheel(WORKLOAD, distill=Causal(max_steps=MAX_STEPS), gate=GateSpec(margin=MARGIN))
    return {**result, "day": day, "traffic": counts, "seconds": round(time.monotonic() - started)}


async def open_shop(day: int, conversations: int) -> dict[str, int]:
    """The gateway in this process, with the teacher behind it and the champion, if there is one, before it."""
    import httpx

    from flows import gateway
    from infra.gateway.access import credentials
    from infra.seedling.simulate import WORKLOAD
    from infra.seedling.simulate import day as simulate

    app = gateway.app(WORKLOAD)
    with Bar() as bar:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gateway", timeout=120, headers=credentials()
            ) as client:
                counts = await simulate(client, day, conversations, bar)
    return counts


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def render(result: dict[str, Any]) -> str:
    from flows.flywheel import render as turn

    steps = {
        "make demo": "another day, held against what serves now",
        f"{COMMAND} up": "Prefect, MLflow and the gateway, with their pages",
        f"{COMMAND} run --help": "every knob of the wheel, for your own traffic",
    }
    if result["outcome"] == "promote" and result["reference"] != "teacher":
        steps[f"{COMMAND} release --rollback --workload {result['workload']}"] = "what served before serves again"
        steps.pop(f"{COMMAND} run --help")
    width = max(map(len, steps))
    lines = "\n".join(f"  {command:<{width}}  {what}" for command, what in steps.items())
    return f"{turn(result)}\n\nNext:\n{lines}\n\n{result['seconds']} s in all."
