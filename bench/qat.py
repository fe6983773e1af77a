"""What quantization does to a task, by the project's own gate: the seedling student, its artifacts in their engines.

    python bench/qat.py [--items 1000] [--steps 192] [--only PATTERN]

The student answers unseen service calls and copying tasks; an answer is right if it is the expected one in full. Every
artifact is judged as `flywheel release` would: paired with the unquantized model's answers, margin of 3 points at 95 %
confidence. GGUF files are run by llama.cpp, compressed-tensors by torch, so what is judged is what would be served.

Calibration (2,048 sequences) and items are drawn from one distribution with different seeds; nothing was tuned on the
items.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import quant
from infra import engines
from infra.engines.chat import load_tokenizer
from infra.seedling import services
from infra.seedling.make import IGNORED, encode
from quant.calibrate import Batch
from quant.methods import GPTQ, QAT, Method
from tasks.gate.rule import Card, GateSpec, judge
from tasks.metrics import Answered, ExactMatch
from tasks.scoring.scorecards import score
from tasks.teachers.hf import load_model

SEEDLING = Path(__file__).parent.parent / "infra/seedling"
STUDENT = SEEDLING / "models/student"
CALIBRATION, BATCH, RATE = 2048, 16, 0.0075


@dataclass(frozen=True)
class Artifact:
    """A way to quantize the student and the format it is served in; no method: as it is."""

    method: Method | None
    format: quant.exports.Format

    @property
    def name(self) -> str:
        return f"{self.method.label} {self.method.name}" if self.method else "unquantized"


def artifacts(steps: int) -> list[Artifact]:
    """Each size by GPTQ and by QAT, in the smallest layout that an engine runs."""
    found = [Artifact(None, "gguf"), Artifact(QAT(bits=8), "gguf")]
    for method in (
        GPTQ(bits=4),
        QAT(bits=4),
        GPTQ(bits=3, grid="k"),
        QAT(bits=3, grid="k", steps=steps, learning_rate=RATE),
    ):
        found.append(Artifact(method, "gguf"))
    for method in (GPTQ(bits=2, grid="k"), QAT(bits=2, grid="k", steps=steps, learning_rate=RATE)):
        found.append(Artifact(method, "gguf"))
    for method in (GPTQ(bits=2), QAT(bits=2, steps=steps, learning_rate=RATE)):
        found.append(Artifact(method, "compressed_tensors"))
    return found


def lessons(seed: int, number: int) -> list[list[dict[str, Any]]]:
    """Conversations whose last message is the answer."""
    rng, vocabulary = Random(seed), services.Vocabulary((SEEDLING / "services.toml").read_text())
    return [services.lesson(rng, vocabulary) for _ in range(number)]


def calibration(tokenizer: Any) -> list[Batch]:
    """Padded batches with a mask of the answers."""
    examples = sorted((encode(tokenizer, lesson) for lesson in lessons(11, CALIBRATION)), key=lambda e: len(e[0]))
    batches: list[Batch] = []
    while group := list(islice(examples, len(batches) * BATCH, (len(batches) + 1) * BATCH)):
        width = max(len(ids) for ids, _ in group)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
        labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group])
        attended = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in group])
        batches.append({"input_ids": ids, "attention_mask": attended, "loss_mask": labels != IGNORED})
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000, help="unseen tasks")
    parser.add_argument(
        "--steps",
        type=int,
        default=192,
        help=f"of QAT at 2 and 3 bits, at a rate of {RATE}; 4 and 8 bits take the default",
    )
    parser.add_argument("--only", default="", help="run only artifacts whose name matches, and the reference")
    asked = parser.parse_args()
    tokenizer = load_tokenizer(STUDENT)
    batches = calibration(tokenizer)
    items = lessons(13, asked.items)
    rows = [{"interaction_id": i, "conversation": str(i), "expected": item[-1]} for i, item in enumerate(items)]
    requests = [{"messages": item[:-1]} for item in items]
    reference: Card | None = None
    for artifact in artifacts(asked.steps):
        if artifact.method and not re.search(asked.only, artifact.name):
            continue
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            model = load_model(str(STUDENT))
            started = time.monotonic()
            if artifact.method:
                quant.quantize(model, artifact.method, batches)
            seconds = time.monotonic() - started
            tokenizer.save_pretrained(folder)
            path = folder / "model.gguf" if artifact.format == "gguf" else folder
            quant.export(model, path, artifact.format, STUDENT)
            size = sum(file.stat().st_size for kind in ("*.gguf", "*.safetensors") for file in folder.glob(kind))
            engine = engines.load(folder)
            answers = [reply.message for reply in engine.chat(requests)]
            engine.close()
        metrics, judged = score([Answered(*pair) for pair in zip(rows, answers, strict=True)], ExactMatch())
        card = Card(artifact.name, artifact.name, metrics, tuple(judged))
        reference = reference or card
        verdict = judge(card, [reference], GateSpec())
        right = sum(item.value for item in judged) / len(judged)
        kept = right / (sum(item.value for item in reference.items) / len(judged))
        print(
            f"{artifact.name:<12} {engine.name:<9} {size / 1e6:5.2f} MB  {seconds:6.1f} s  right {right:.1%}, "
            f"{kept:.1%} of the unquantized one's; {verdict.outcome}: {verdict.findings[0].reason}",
            flush=True,
        )


if __name__ == "__main__":
    main()
