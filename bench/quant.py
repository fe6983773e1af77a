"""Our quantization beside the libraries it would replace: same model, same calibration, same measure, one run.

    python bench/peers/environments.py                 # once: a virtual environment for each library
    python bench/quant.py OUT [--subjects teacher ...] [--only PATTERN]

Each job is a process of its own in its library's environment and leaves its folder under OUT; a job that is there is
not run again, so a run that was broken off goes on. At the end OUT holds results.csv, the plots, and README tables:
KL(unquantized || quantized) per token on text that was not calibrated on, against bits per weight as stored.

Bits per weight are those of the quantized linears with their scales; scales that a library stores as float32 only
because it was handed a float32 model count as 16 bits. Seconds are of quantization alone, wall time, jobs one after
another; on a busy machine compare them within one run.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent), str(Path(__file__).parent / "peers")]

import torch
from environments import python_of, script_of
from results import OURS, Row, pareto
from safetensors.torch import load_file, save_file
from subjects import SUBJECTS, Subject, subject

WIDE = ("teacher", "student")  # widths that super-blocks of 256 divide
Options = dict[str, Any]


def jobs_of(name: str) -> list[tuple[str, str, Options]]:
    """(peer, title, options of the job) for a subject: everything that can be compared on it."""
    wide = name in WIDE
    groups = (128, 32) if wide else (32,)
    asked: list[tuple[str, str, Options]] = []

    def add(peer: str, method: str, **options: Any) -> None:
        said = " ".join(f"{key}{value}" for key, value in options.items() if key != "gguf")
        asked.append((peer, f"{method} {said}".strip(), {"method": method, **options}))

    def ours(method: str, /, **spec: Any) -> None:
        said = " ".join(f"{key}{value}" for key, value in spec.items() if key != "method")
        whole = spec | {"name": method} if "method" in spec else {"embedding_bits": 16, **spec, "name": method}
        asked.append((OURS, f"{method} {said}", {"method": method, "spec": whole}))

    for bits in (4, 3, 2):
        for group in groups:
            shape = {"bits": bits, "group_size": group}
            for method in ("rtn", "gptq", "awq", "autoround"):
                ours(method, **shape)
            ours("gptq", **shape, correction=0.0)
            ours("best", **shape)
            for method in ("rtn_mse", "gptq", "gptq_mse", "awq"):
                add("llmcompressor", method, **shape)
            for method in ("gptq", "gptq_mse", "gptaq_mse"):
                add("gptqmodel", method, **shape)
            add("autoround", "autoround", **shape)
            add("torchao", "intx_hqq", **shape)
        if wide:
            ours("qat", bits=bits, group_size=groups[-1])
        if bits == 2:
            add("autoround", "autoround_v2", bits=2, group_size=groups[0])
    if not wide:
        ours("autoround", bits=2, group_size=None)  # below the groups of every peer
    for bits in (2, 4):
        add("quanto", "hqq", bits=bits)
    ours("rtn", bits=8, group_size=None)
    add("torchao", "int8")
    for budget in (2.5, 3.5, 5.0, 6.0):
        inner = {"name": "gptq", "group_size": groups[-1], "embedding_bits": 16}
        ours("mixed", bits_per_weight=budget, method=inner)
    if wide:
        for bits in (2, 3, 4, 5, 6):
            spec = {"name": "best", "grid": "k", "bits": bits, "embedding_bits": 6}
            asked.append((OURS, f"best q{bits}_k", {"method": "best", "spec": spec, "format": "gguf"}))
            add("llamacpp", f"q{bits}_k" + ("" if bits in (2, 6) else "_m"), imatrix=True)
        for method in ("iq2_xs", "iq3_xxs", "iq4_xs"):
            add("llamacpp", method, imatrix=True)
    return asked


def prepare(found: Subject, out: Path) -> Options:
    """Files that all jobs of a subject read."""
    folder = out / found.name
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("calibration", "evaluation"):
        save_file({"input_ids": getattr(found, part).contiguous()}, folder / f"{part}.safetensors")
    model = found.folder
    if not (folder / "model").exists():
        from transformers import AutoTokenizer

        float32 = found.load()
        float32.save_pretrained(folder / "model.partial")
        AutoTokenizer.from_pretrained(model).save_pretrained(folder / "model.partial")
        (folder / "model.partial").rename(folder / "model")
    if found.name in WIDE and not (folder / "model.gguf").exists():
        import quant

        quant.export(found.load(), folder / "model.gguf", "gguf", found.folder)
    return {
        "model": str(folder / "model"), "gguf": str(folder / "model.gguf"), "threads": torch.get_num_threads(),
        "calibration": str(folder / "calibration.safetensors"), "evaluation": str(folder / "evaluation.safetensors"),
    }  # fmt: skip


def run(peer: str, title: str, options: Options, common: Options, folder: Path) -> str | None:
    """Run a job unless it was run before; what went wrong, or None."""
    if (folder / "result.json").exists():
        return None
    if (folder / "failed.txt").exists():
        return (folder / "failed.txt").read_text()
    python = Path(sys.executable) if peer == OURS else python_of(peer)
    if not python.exists():
        return f"no environment; python bench/peers/environments.py {peer}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(common | options))
    ended = subprocess.run([python, script_of(peer), folder], capture_output=True, text=True)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1]
        (folder / "failed.txt").write_text(said)
        return said
    return None


@torch.no_grad()
def measure(found: Subject, reference: torch.Tensor, peer: str, title: str, folder: Path) -> Row:
    """KL and the rest from the logits a job left."""
    result = json.loads((folder / "result.json").read_text())
    given = load_file(folder / "logits.safetensors")["logits"].float().log_softmax(-1)
    counted = found.counted
    kl = float((reference.exp() * (reference - given)).sum(-1)[counted].mean())
    top1 = float((given.argmax(-1) == reference.argmax(-1))[counted].float().mean())
    said = given[:, :-1].gather(-1, found.evaluation[:, 1:, None])[..., 0]
    bits = next(result[k] for k in ("linear_bits_half", "linear_bits_packed", "linear_bits") if result.get(k))
    task = found.task_score(given)
    return Row(
        found.name, peer, title, bits, kl, top1, float((-said[counted[:, :-1]].mean()).exp()),
        sum(task) / len(task) if task else math.nan, result["seconds"], result["peak_mb"], result["bytes"] or 0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of all jobs and results")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=["babyllama", "teacher"])
    parser.add_argument("--only", default="", help="run only jobs whose 'library title' matches this expression")
    asked = parser.parse_args()
    rows: list[Row] = []
    for name in asked.subjects:
        found = subject(name)
        common = prepare(found, asked.out)
        reference = found.logits(found.load()).log_softmax(-1)
        for peer, title, options in jobs_of(name):
            folder = asked.out / name / re.sub(r"[^\w.]+", "-", f"{peer} {title}")
            if not re.search(asked.only, f"{peer} {title}"):
                continue
            if problem := run(peer, title, options, common, folder):
                print(f"{name:<12} {peer:<14} {title:<34} {problem[:90]}", flush=True)
                continue
            row = measure(found, reference, peer, title, folder)
            rows.append(row)
            print(
                f"{name:<12} {peer:<14} {title:<34} {row.bits:5.2f} bits  KL {row.kl:.5f}  top-1 {row.top1:.3f}  "
                f"task {row.task:.3f}  {row.seconds:7.1f} s  {row.peak_mb:6.0f} MB",
                flush=True,
            )
    if rows:
        report(rows, asked.out)


def report(rows: list[Row], out: Path) -> None:
    """results.csv, the plots, and how we compare at each of the peers' sizes."""
    with (out / "results.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0].__dict__))
        writer.writeheader()
        writer.writerows(row.__dict__ for row in rows)
    for name in dict.fromkeys(row.subject for row in rows):
        own = [row for row in rows if row.subject == name]
        pareto(own, out / f"{name}.png")
        for row in sorted((r for r in own if r.peer != OURS), key=lambda r: r.bits):
            smaller = [r for r in own if r.peer == OURS and r.bits <= row.bits + 0.005]
            if smaller:
                best = min(smaller, key=lambda r: r.kl)
                print(
                    f"{name}: {row.peer} {row.title} at {row.bits:.2f} bits has KL {row.kl:.5f}; "
                    f"ours at {best.bits:.2f} has {best.kl:.5f} ({best.title}): {best.kl / row.kl:.2f} times"
                )


if __name__ == "__main__":
    main()
