"""What a student of the simulated shop learns by each lesson: validation answers that it gets right.

    python bench/lessons.py [steps] [seeds] [lesson ...]

Home is FLYWHEEL_HOME, where the day at the shop is simulated once and students stay. A quarter of the phrasings are
the validation split, and the holdout is not looked at. Right is an answer that greedy decoding gives token by token.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any


def lessons() -> dict[str, dict[str, Any]]:
    from tasks.lessons import Imitation, Logits, OnPolicy

    return {
        "imitation": {"learn": Imitation()},
        "logits": {},
        "logits, T = 2": {"learn": Logits(temperature=2.0)},
        "logits, reverse KL": {"learn": Logits(divergence="reverse_kl")},
        "logits, JSD": {"learn": Logits(divergence="jsd", weight=4.0)},
        "on-policy, JSD": {"learn": OnPolicy()},
        "on-policy, reverse KL": {"learn": OnPolicy(divergence="reverse_kl")},
        "hard cases twice": {"hard": 2.0},
        "hard cases four times": {"hard": 4.0},
    }


def right(path: str, dataset: Any) -> tuple[int, int]:
    """(validation answers that the student gives greedily, validation answers)."""
    import torch
    from peft import PeftModel

    from infra.engines.chat import load_tokenizer
    from tasks.students import Causal
    from tasks.teachers.hf import load_model
    from tasks.training.examples import encode
    from tasks.training.hard import unlearned

    torch.set_num_threads(1)
    examples = encode(load_tokenizer(path), dataset.split("validation"), 1024)
    model = PeftModel.from_pretrained(load_model(Causal().path), Path(path) / "adapter")
    return len(examples) - len(unlearned(model, examples, 2048)), len(examples)


def shop() -> Any:
    """A dataset of a day at the shop."""
    from flows.demo import open_shop
    from infra.database.session import session
    from infra.database.tables import Interaction
    from infra.seedling.simulate import WORKLOAD
    from tasks.curate import CurateSpec, curate
    from tasks.dataset.frozen import load

    with session() as db:
        empty = db.query(Interaction).first() is None
    if empty:
        asyncio.run(open_shop(1, 3000))
    return load(curate(WORKLOAD, CurateSpec(validation=0.25))["dataset_id"])


def main(steps: int, seeds: int, names: list[str]) -> None:
    from tasks.distill import distill
    from tasks.students import Causal

    dataset = shop()
    for name, options in lessons().items():
        if names and name not in names:
            continue
        for seed in range(seeds):
            started = time.monotonic()
            student = distill(dataset.id, Causal(max_steps=steps, seed=seed, **options))
            seconds = time.monotonic() - started
            correct, n = right(student["path"], dataset)
            best = min(h["validation_loss"] for h in student["history"])
            print(
                f"{name:<24} seed {seed}  {correct}/{n} {correct / n:6.1%}  loss {best:.4f}  {seconds:5.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from flows.__main__ import quiet_environment

    os.environ.setdefault("FLYWHEEL_THREADS", "1")
    quiet_environment()
    main(*(int(v) for v in (sys.argv[1:3] + ["1000", "1"][len(sys.argv[1:3]) :])), sys.argv[3:])
