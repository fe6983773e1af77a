"""Training a causal student: our loop beside TRL's SFTTrainer; same model, rows, LoRA, batch tokens and precision.

    python bench/train.py [--rounds 3] [--subjects seedling llama-25m] [--sides flywheel trl-packed]
    python bench/train.py --subjects llama-135m llama-1b [--compile]      # on a GPU: bf16, with MFU

Each side of each round is a process of its own, one after the other, and a side's figure is the median of its rounds.
On a CPU all have one thread and seconds are CPU seconds, so that neighbours count for little; on a GPU, wall clock.

TRL runs at its best: no gradient checkpointing, loss on the answer alone, sequences packed ("bfd", no padding, masks
by position) or grouped by length and padded, whichever is faster; its optimizer is fused AdamW. Ours is measured with
Muon, as it trains, and with fused AdamW as well. Tokens are those of the sequences, padding left out.

Rows are SNIPS and banking77, without their system prompts and tools, as a student with a baked prefix reads them; on a
GPU, random sequences of log-normal lengths. Memory is the peak above what there was before the first step.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SHARED = Path(os.environ.get("FLYWHEEL_SHARED", ROOT.parent / "shared"))
SEEDLING = ROOT / "infra/seedling/models/student"
SIDES = ("flywheel", "flywheel-adamw", "trl-packed", "trl-padded")
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}  # bf16 FLOP/s, dense
WARM = 5  # steps before the clock starts


@dataclass(frozen=True)
class Subject:
    """A model and how much it trains on; no shape: the seedling's base."""

    batch_tokens: int
    steps: int
    shape: tuple[int, int, int, int, int, int] | None = None  # hidden, MLP, layers, heads, KV heads, vocabulary
    gpu: bool = False


SUBJECTS = {
    "seedling": Subject(384, 60),
    "seedling, 1,024 tokens": Subject(1024, 30),
    "llama-25m": Subject(384, 15, (512, 1408, 8, 8, 4, 4096)),
    "llama-135m": Subject(16384, 40, (576, 1536, 30, 9, 3, 49152), gpu=True),
    "llama-1b": Subject(16384, 40, (2048, 8192, 16, 32, 8, 128256), gpu=True),
}


def model_of(subject: Subject) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.teachers.hf import load_model

    if subject.shape is None:
        return load_model(str(SEEDLING))
    hidden, mlp, layers, heads, kv_heads, vocabulary = subject.shape
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip


def examples_of(subject: Subject) -> list[Any]:
    """Training sequences; shuffled."""
    from infra.engines.chat import load_tokenizer
    from tasks.training.examples import Example, encode

    rng = Random(0)
    if subject.gpu:
        assert subject.shape is not None
        lengths = [min(2048, max(16, int(rng.lognormvariate(5, 0.8)))) for _ in range(20000)]
        return [
            Example([rng.randrange(2, subject.shape[-1]) for _ in range(n)], n * 2 // 3, 1.0, True, row)
            for row, n in enumerate(lengths)
        ]
    rows = [*traffic("snips", 3000), *traffic("banking77", 3000)]
    rng.shuffle(rows)
    return encode(load_tokenizer(SEEDLING), rows, 1024)


def traffic(name: str, limit: int) -> Iterator[dict[str, Any]]:
    with gzip.open(SHARED / "data" / name / "telemetry.jsonl.gz", "rt") as lines:
        for line, _ in zip(lines, range(limit), strict=False):
            record = json.loads(line)
            messages = [m for m in record["request"]["messages"] if m["role"] != "system"]
            expected = record["response"]["choices"][0]["message"]
            yield {"messages": messages, "tools": None, "expected": expected, "weight": 1.0, "origin": "logged"}


class Watch:
    """Seconds, tokens and memory of the steps after the first few."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.steps = gpu, 0
        self.tokens = self.answers = 0
        self.forget_peak()
        self.base = self.memory("VmRSS")

    def now(self) -> float:
        if not self.gpu:
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def done(self, tokens: int, answers: int) -> None:
        """A step is done."""
        self.steps += 1
        if self.steps > WARM:
            self.tokens += tokens
            self.answers += answers
            self.ended = self.now()
        elif self.steps == WARM:
            self.began = self.now()

    def forget_peak(self) -> None:
        if self.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def memory(self, field: str) -> float:
        """MB: of the process (VmRSS now, VmHWM at its peak), or of the GPU."""
        if self.gpu:
            import torch

            peak = torch.cuda.max_memory_allocated()
            return (peak if field == "VmHWM" else torch.cuda.memory_allocated()) / 1e6
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(status[field].split()[0]) * 1024 / 1e6

    def result(self) -> dict[str, float]:
        seconds = self.ended - self.began
        return {
            "tokens_s": self.tokens / seconds, "answers_s": self.answers / seconds,
            "memory": self.memory("VmHWM") - self.base, "step": (self.tokens / (self.steps - WARM)),
            "answer_share": self.answers / self.tokens,
        }  # fmt: skip


def ours(subject: Subject, optimizer: str, compiled: bool) -> tuple[Watch, Any]:
    import torch

    from tasks.lessons.imitation import imitate
    from tasks.students import Causal
    from tasks.students.adapters import fresh
    from tasks.training.examples import schedule
    from tasks.training.loop import Trainer

    spec = Causal(batch_tokens=subject.batch_tokens)
    model = fresh(model_of(subject), spec, Path()).to("cuda" if subject.gpu else "cpu").train()
    groups = schedule(examples_of(subject), spec.batch_tokens, 0, 0)[: subject.steps]
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(model, spec, Path(work), lambda model, group, at: imitate(model, group))
    if optimizer == "adamw":
        trainer.optimizer = torch.optim.AdamW(trainer.adapter.values(), lr=spec.learning_rate, fused=True)
    if compiled:
        for layer in model.get_base_model().model.layers:
            layer.compile(dynamic=True)
    watch = Watch(subject.gpu)
    for step, group in enumerate(groups):
        trainer.learn(group, (step + 1) / len(groups))
        watch.done(sum(len(e.ids) for e in group), sum(len(e.ids) - e.prompt for e in group))
    return watch, model


def theirs(subject: Subject, packed: bool, compiled: bool) -> tuple[Watch, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from infra.engines.chat import load_tokenizer
    from tasks.students import Causal

    spec, examples = Causal(), examples_of(subject)
    mean = statistics.mean(len(e.ids) for e in examples)
    if packed:
        batches = {"packing": True, "max_length": subject.batch_tokens, "per_device_train_batch_size": 1}
    else:
        batches = {"max_length": 2048, "train_sampling_strategy": "group_by_length"}
        batches["per_device_train_batch_size"] = round(subject.batch_tokens / mean)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=subject.steps, learning_rate=spec.learning_rate, bf16=subject.gpu,
        use_cpu=not subject.gpu, gradient_checkpointing=False, report_to=[], logging_strategy="no", save_strategy="no",
        lr_scheduler_type="cosine", disable_tqdm=True, dataloader_pin_memory=False, torch_compile=compiled, **batches,
    )  # fmt: skip
    rows = [{"input_ids": e.ids, "labels": [-100] * e.prompt + e.ids[e.prompt :]} for e in examples]
    lora = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model_of(subject), args=config, train_dataset=Dataset.from_list(rows), peft_config=lora,
        processing_class=load_tokenizer(SEEDLING),
    )  # fmt: skip
    sizes: list[tuple[int, int]] = []
    collate: Callable[[Any], dict[str, Any]] = trainer.data_collator

    def counted(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        real = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        sizes.append((int(real), int((batch["labels"] != -100).sum())))
        return batch

    trainer.data_collator = counted
    watch = Watch(subject.gpu)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            watch.done(*sizes[watch.steps])

    trainer.add_callback(Steps())
    trainer.train()
    return watch, trainer.model


def job(name: str, side: str, compiled: bool) -> None:
    import torch

    torch.set_num_threads(1)
    subject = SUBJECTS[name]
    kind, _, variant = side.partition("-")
    watch, model = (
        ours(subject, variant, compiled) if kind == "flywheel" else theirs(subject, variant == "packed", compiled)
    )
    result = watch.result()
    if subject.gpu:
        result["mfu"] = result["tokens_s"] * flops(model, result["answer_share"]) / peak()
    print(json.dumps(result))


def flops(model: Any, answer_share: float) -> float:
    """Model FLOPs of a token: 4 a frozen parameter (no gradient of it), 6 a trained one, the head on answers alone.

    Attention's own products are left out: at these lengths they are a few percent.
    """
    import torch

    head = model.get_output_embeddings().weight.numel()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight.numel() != head]
    per_token = sum((6 if m.weight.requires_grad else 4) * m.weight.numel() for m in linear)
    return float(per_token + 4 * head * answer_share)


def peak() -> float:
    import torch

    name = torch.cuda.get_device_name()
    found = [value for part, value in PEAK.items() if part in name]
    if not found:
        raise SystemExit(f"the peak FLOP/s of {name!r} are unknown here; add them to PEAK in {__file__}")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=[s for s in SUBJECTS if not SUBJECTS[s].gpu])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--compile", action="store_true", help="torch.compile, on both sides")
    parser.add_argument("--job", nargs=2, metavar=("SUBJECT", "SIDE"), help="one measurement, in this process")
    asked = parser.parse_args()
    if asked.job:
        return job(*asked.job, asked.compile)
    if not (SHARED / "data").exists() and not all(SUBJECTS[name].gpu for name in asked.subjects):
        raise SystemExit(f"skipped: no shared data in {SHARED}; FLYWHEEL_SHARED names its folder")
    for name in asked.subjects:
        found: dict[str, list[dict[str, float]]] = {side: [] for side in asked.sides}
        for _ in range(asked.rounds):
            for side in asked.sides:
                found[side].append(measured(name, side, asked.compile))
        show(name, found)


def measured(name: str, side: str, compiled: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--job", name, side, *(["--compile"] if compiled else [])]
    quiet = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
    if done.returncode:
        raise SystemExit(f"{name}, {side}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(name: str, found: dict[str, list[dict[str, float]]]) -> None:
    middle = {
        side: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]} for side, rounds in found.items()
    }
    peers = [side for side in middle if side.startswith("trl")]
    best = max(peers, key=lambda side: middle[side]["tokens_s"], default=None)
    for side, row in middle.items():
        against = ""
        if best and side not in peers:
            least = min(middle[peer]["memory"] for peer in peers)
            times, memory = row["tokens_s"] / middle[best]["tokens_s"], row["memory"] / least
            against = f"  {times:.2f} times {best}, {memory:.2f} of the least memory"
        utilisation = f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
        print(
            f"{name:<24} {side:<15} {row['tokens_s']:8,.0f} tokens/s  {row['answers_s']:7,.0f} of answers  "
            f"{row['step']:6,.0f} a step  +{row['memory']:6,.0f} MB{utilisation}{against}",
            flush=True,
        )


if __name__ == "__main__":
    main()
