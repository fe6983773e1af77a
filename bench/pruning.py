"""What is left of a student of the simulated shop when its base is pruned first, and what of that its choice is worth.

    python bench/pruning.py [steps] [name ...]

Home is FLYWHEEL_HOME, where the day at the shop is simulated once and students stay. A quarter of the phrasings are
the validation split, and the holdout is not looked at. Right is an answer that greedy decoding gives token by token.
`random` keeps units and blocks by chance, as many, and lets them stand in for the others by the same least squares.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch


def students() -> dict[str, dict[str, Any]]:
    from quant.pruning import Prune

    both = Prune(layers=0.5, mlp=0.5)
    return {
        "whole": {},
        "half the MLP": {"prune": Prune(mlp=0.5)},
        "half the MLP, random": {"prune": Prune(mlp=0.5)},
        "half the layers": {"prune": Prune(layers=0.5)},
        "half the layers, random": {"prune": Prune(layers=0.5)},
        "both": {"prune": both},
        "both, random": {"prune": both},
        "both, rank 128": {"prune": both, "rank": 128, "alpha": 1024},
        "3/4 of the channels": {"prune": Prune(hidden=0.75)},
        "3/4 of the channels, random": {"prune": Prune(hidden=0.75)},
    }


@contextmanager
def by_chance(seed: int) -> Iterator[None]:
    """Pruning that does not look at what it keeps."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def some(count: int, among: int) -> Any:
        return torch.randperm(among, generator=random)[:count].sort().values

    def blocks(model: Any, batches: Any, count: int, progress: Any) -> list[int]:
        return [int(i) for i in some(count, model.config.num_hidden_layers)]

    with (
        patch("quant.pruning.highest", lambda scores, count: some(count, len(scores))),
        patch("quant.importance.blocks_to_keep", blocks),
    ):
        yield


def right(path: str, dataset: Any) -> tuple[int, int, float]:
    """(validation answers that the student gives greedily, validation answers, tokens a CPU second that it reads)."""
    import torch

    from infra.engines.chat import load_tokenizer
    from tasks.teachers.hf import load_model
    from tasks.training.examples import collate, encode, lengths, schedule
    from tasks.training.forward import batch_logits, pack

    torch.set_num_threads(1)
    examples = encode(load_tokenizer(path), dataset.split("validation"), 1024)
    model, correct = load_model(path).eval(), 0
    pack(model)
    started = time.process_time()
    with torch.inference_mode():
        for group in schedule(examples, 2048, 0, 0):
            batch = collate(group)
            hits = batch_logits(model, batch).argmax(-1) == batch.targets
            correct += sum(bool(part.all()) for part in hits.split(lengths(group).tolist()))
    return correct, len(examples), sum(len(e.ids) for e in examples) / (time.process_time() - started)


def main(steps: int, names: list[str]) -> None:
    from bench.lessons import shop
    from tasks.distill import distill
    from tasks.students import Causal

    dataset = shop()
    for seed, (name, options) in enumerate(students().items()):
        if names and name not in names:
            continue
        # The same id would be given to both choices of one shape; another seed of the training tells them apart.
        spec = Causal(max_steps=steps, seed=1 if name.endswith("random") else 0, **options)
        if name.endswith("random"):
            with by_chance(seed):
                student = distill(dataset.id, spec)
        else:
            student = distill(dataset.id, spec)
        correct, n, speed = right(student["path"], dataset)
        best = min(h["validation_loss"] for h in student["history"])
        size = sum(file.stat().st_size for file in Path(student["path"]).glob("*.safetensors"))
        count = student.get("parameters")
        print(
            f"{name:<28} {correct}/{n} {correct / n:6.1%}  loss {best:.4f}  {count or 'all'} parameters  "
            f"{size / 1e6:.1f} MB  {speed:,.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from flows.__main__ import quiet_environment

    os.environ.setdefault("FLYWHEEL_THREADS", "1")
    quiet_environment()
    main(int((sys.argv[1:2] or ["400"])[0]), sys.argv[2:])
