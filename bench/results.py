"""What a comparison came to, and its picture: KL against bits per weight and seconds, one colour a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "flywheel"


@dataclass(frozen=True)
class Row:
    """What one job came to."""

    subject: str
    peer: str
    title: str
    bits: float
    kl: float
    top1: float
    perplexity: float
    task: float
    seconds: float
    peak_mb: float
    bytes: int


def pareto(rows: Sequence[Row], file: Path) -> None:
    """Two panels; the lowest KL of each side at each size is joined by a line."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), constrained_layout=True)
    peers = sorted({row.peer for row in rows}, key=lambda peer: (peer != OURS, peer))
    for number, peer in enumerate(peers):
        own = [row for row in rows if row.peer == peer]
        look = {"color": "black" if peer == OURS else f"C{number}", "marker": "*" if peer == OURS else "o"}
        left.scatter([r.bits for r in own], [r.kl for r in own], label=peer, s=60 if peer == OURS else 25, **look)
        right.scatter([r.seconds for r in own], [r.kl for r in own], s=60 if peer == OURS else 25, **look)
    for ours, colour in ((True, "black"), (False, "grey")):
        line = front([row for row in rows if (row.peer == OURS) == ours])
        left.plot([r.bits for r in line], [r.kl for r in line], color=colour, linewidth=1, drawstyle="steps-post")
    left.set(
        xlabel="bits per weight, scales included", ylabel="KL to the unquantized model, nats a token", yscale="log"
    )
    right.set(xlabel="seconds to quantize", xscale="log", yscale="log")
    left.legend()
    figure.suptitle(rows[0].subject)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that nothing else beats in both bits and KL, smallest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.bits, r.kl)):
        if not best or row.kl < best[-1].kl:
            best.append(row)
    return best
