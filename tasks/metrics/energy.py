"""Energy: joules a request, where the machine counts them; absent otherwise.

Counted are the processor's packages, by Linux powercap (Intel's and AMD's RAPL), and NVIDIA's GPUs, by NVML (package
`nvidia-ml-py`, Volta and later). It is the machine's energy, whoever used it: measure on one that has nothing else to
do. RAPL counters may be read by root alone.
"""

import contextlib
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Counts from where it is made."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.powercap = powercap
        self.packages, self.gpus = _packages(powercap), _gpus()

    def report(self, requests: int) -> dict[str, float | None]:
        """Joules a request; None where nothing was counted, or a counter is gone."""
        now, gpus = _packages(self.powercap), _gpus()
        if not (self.packages or self.gpus) or now.keys() != self.packages.keys() or len(gpus) != len(self.gpus):
            return {"joules_per_request": None}
        joules = sum(after - before for after, before in zip(gpus, self.gpus, strict=True)) / 1e3
        for name, (before, wraps) in self.packages.items():
            spent = now[name][0] - before
            joules += (spent if spent >= 0 else spent + wraps) / 1e6
        return {"joules_per_request": joules / requests}


def _packages(powercap: Path) -> dict[str, tuple[int, int]]:
    """Microjoules, and where the counter begins again, of each package; its cores are zones within it (`:0:0`)."""
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:
            with contextlib.suppress(OSError, ValueError):
                counts = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
                spent, wraps = map(int, counts)
                found[zone.name] = spent, wraps
    return found


def _gpus() -> list[int]:
    """Millijoules of each GPU since its driver was loaded."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: the library's own kinds
        return []
    try:
        handles: list[Any] = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles]
    except pynvml.NVMLError:  # a GPU that does not count
        return []
    finally:
        pynvml.nvmlShutdown()
