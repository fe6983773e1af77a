"""Zero-downtime: bounded load on a gateway on loopback while its champion changes 50 times between two versions.

    python bench/swaps.py [swaps] [customers]

Each version is the demo's student as GGUF. A request is in a swap if it was on its way at any time between the move of
the alias and the moment at which the gateway serves the other version; all others are steady. Printed are the failed
requests, p50 and p99 of both, and their ratio. The milliseconds are this machine's, with whatever else it does; load
generator and gateway share its cores, so the ratio is the figure.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
WORKLOAD = "bench.swaps"
PAUSE_SECONDS = 0.1
PREFIX = "You are the assistant of a shop."


def version(folder: Path, number: int) -> str:
    """Register the student once more, with another manifest and so another hash."""
    from transformers import AutoModelForCausalLM

    import quant
    from infra import registry
    from infra.settings import SEEDLING

    student, made = SEEDLING / "student", folder / str(number)
    made.mkdir()
    quant.export(AutoModelForCausalLM.from_pretrained(student), made / "model.gguf", "gguf", student)
    for file in (*student.glob("*token*"), *student.glob("*.jinja")):
        shutil.copy(file, made)
    manifest = {"workload": WORKLOAD, "number": number, "prefix": {"system": PREFIX, "tools": []}, "max_tokens": 8}
    (made / "flywheel.json").write_text(json.dumps(manifest))
    return registry.register(WORKLOAD, made, metrics={}, tags={}, parameters={}, run_name=str(number))[0]


class Span(NamedTuple):
    """A request: when it began and ended (monotonic), and what was wrong with its answer, if anything."""

    began: float
    ended: float
    wrong: str


async def customer(url: str, spans: list[Span], stop: asyncio.Event) -> None:
    """Ask, wait, ask again, until told to stop."""
    import httpx

    body = {
        "model": WORKLOAD, "max_tokens": 8,
        "messages": [{"role": "system", "content": PREFIX}, {"role": "user", "content": "Where is order 48213?"}],
    }  # fmt: skip
    async with httpx.AsyncClient(timeout=120) as client:
        while not stop.is_set():
            began = time.monotonic()
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                wrong = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:120]}"
            except httpx.HTTPError as problem:
                wrong = repr(problem)
            spans.append(Span(began, time.monotonic(), wrong))
            await asyncio.sleep(PAUSE_SECONDS)


async def swapped(url: str, versions: list[str], swaps: int, windows: list[tuple[float, float]]) -> None:
    import httpx

    from infra import registry

    async with httpx.AsyncClient() as client:

        async def serves() -> Any:
            listed = (await client.get(f"{url}/v1/models")).json()["data"]
            return next((entry["version"] for entry in listed if entry["id"] == WORKLOAD), None)

        while await serves() != versions[0]:
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        for number in range(1, swaps + 1):
            begun, chosen = time.monotonic(), versions[number % 2]
            await asyncio.to_thread(registry.promote, WORKLOAD, chosen)
            while await serves() != chosen:
                await asyncio.sleep(0.05)
            windows.append((begun, time.monotonic()))
            await asyncio.sleep(1.5)


async def measure(url: str, versions: list[str], swaps: int, customers: int) -> None:
    spans: list[Span] = []
    windows: list[tuple[float, float]] = []
    stop = asyncio.Event()
    asking = [asyncio.create_task(customer(url, spans, stop)) for _ in range(customers)]
    await swapped(url, versions, swaps, windows)
    stop.set()
    await asyncio.gather(*asking)
    steady, during = [], []
    for span in spans:
        inside = any(span.began < last and span.ended > first for first, last in windows)
        (during if inside else steady).append(1000 * (span.ended - span.began))
    wrong = Counter(span.wrong for span in spans if span.wrong)
    print(f"{len(windows)} swaps, {customers} customers, {len(spans)} requests, {wrong.total()} failed {dict(wrong)}")
    tails = []
    for name, times in (("steady", steady), ("in a swap", during)):
        cuts = statistics.quantiles(times, n=100)
        tails.append(cuts[98])
        print(f"{name:<10} {len(times):>6} requests   p50 {cuts[49]:6.0f} ms   p99 {cuts[98]:6.0f} ms")
    print(f"p99 in a swap is {tails[1] / tails[0]:.2f} times the steady one (at most 2 is the aim)")


def main(swaps: int, customers: int) -> None:
    from tests.mlflow_server import free_port

    with tempfile.TemporaryDirectory() as place:
        port, folder = free_port(), Path(place)
        os.environ |= {
            "FLYWHEEL_HOME": str(folder / "home"), "FLYWHEEL_TEACHER": "", "FLYWHEEL_THREADS": "1",
            "FLYWHEEL_GATEWAY_PORT": str(port), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        from infra import registry

        versions = [version(folder, number) for number in range(2)]
        registry.promote(WORKLOAD, versions[0])
        gateway = subprocess.Popen([sys.executable, "-m", "flows.gateway"], cwd=ROOT)
        url = f"http://127.0.0.1:{port}"
        try:
            while not answers(url):
                if gateway.poll() is not None:
                    raise SystemExit("the gateway ended; what it says is above")
                time.sleep(0.2)
            asyncio.run(measure(url, versions, swaps, customers))
        finally:
            gateway.terminate()
            gateway.wait(20)


def answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, int(sys.argv[2]) if len(sys.argv) > 2 else 4)
