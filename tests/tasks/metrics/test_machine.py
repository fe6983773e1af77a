"""What an engine takes: memory, energy, cost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.metrics.cost import Prices
from tasks.metrics.energy import Energy
from tasks.metrics.memory import PROCESS, Memory


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="Linux alone tells a peak")
def test_memory_is_the_peak_above_what_was_there_even_if_it_was_freed() -> None:
    memory = Memory()
    held = np.ones(8_000_000)
    del held
    told = memory.report()["memory_bytes"]
    assert told is not None and 60e6 < told < 120e6
    assert (Memory().report()["memory_bytes"] or 0) < 20e6, "what went before does not count"


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="Linux alone tells a peak")
def test_memory_of_an_engine_s_own_process_counts_and_of_others_does_not() -> None:
    code = "import time; held = b'1' * 80_000_000; print(1, flush=True); time.sleep(60)"

    def started() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline()
        return process

    with started() as other:
        memory = Memory()
        assert (memory.report()["memory_bytes"] or 0) < 20e6
        with started() as engine:
            told = memory.report()["memory_bytes"]
            engine.kill()
        other.kill()
    assert told is not None and 80e6 < told < 130e6


def zone(powercap: Path, name: str, spent: int) -> None:
    (powercap / name).mkdir(parents=True, exist_ok=True)
    (powercap / name / "energy_uj").write_text(f"{spent}\n")
    (powercap / name / "max_energy_range_uj").write_text("1000000000\n")


def test_energy_is_what_the_packages_counted_also_where_a_counter_began_again(tmp_path: Path) -> None:
    for name, spent in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 999_000_000), ("intel-rapl:0:0", 0)):
        zone(tmp_path, name, spent)
    energy = Energy(tmp_path)
    zone(tmp_path, "intel-rapl:0", 25_000_000)
    zone(tmp_path, "intel-rapl:1", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", 77_000_000)  # a part of package 0, counted already
    assert energy.report(10) == {"joules_per_request": pytest.approx((20 + 10) / 10)}


def test_energy_that_nobody_counts_is_absent(tmp_path: Path) -> None:
    assert Energy(tmp_path / "none").report(1) == {"joules_per_request": None}
    zone(tmp_path, "intel-rapl:0", 1)
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.report(1) == {"joules_per_request": None}


def test_cost_is_of_the_hour_or_of_the_tokens_and_absent_without_a_price() -> None:
    assert Prices(machine_hour=0.36).by_hour(0.5) == pytest.approx(0.05)
    prices = Prices(prompt=2.0, completion=10.0)
    assert prices.by_token([(1000, 100), (3000, 300)]) == pytest.approx(1000 * (4000 * 2 + 400 * 10) / 1e6 / 2)
    assert prices.by_hour(0.5) is None and Prices(prompt=2.0).by_token([(1, 1)]) is None
    assert prices.by_token([(1000, None)]) is None and prices.by_token([]) is None
