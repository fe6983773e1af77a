"""Interactions and feedback → a frozen dataset: train, validation and holdout, disjoint and hashed.

The holdout is the latest traffic. What came before trains, unless it belongs to a conversation or near-duplicate
cluster of the holdout, or ever was in one; validation is a random part of it, by whole conversations and clusters.
Answers from that time that were objected to are kept apart, as `disliked`: students learn from them what not to say.
Every interaction ends in one split or under one reason in `left_out`. A holdout decides so often and no more: then the
next is cut from the latest that was not in it (`gate/looks.py`).

Traffic is read three times, a page at a time: for what requests share, to enter each interaction into a ledger of a few
numbers, and to write those that were chosen. So a million interactions take no more memory than the numbers about them.
The rules about feedback are in `infra/database/policy.py`; in `dataset/` are the ledger, near duplicates
(`similarity.py`), the split, the frozen files, and what the teacher answers anew (`relabel.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sqlalchemy import select

from infra.database.jsontext import to_column
from infra.database.policy import Judgement
from infra.database.session import session
from infra.database.tables import Dataset as DatasetRow
from infra.database.tables import DatasetItem
from infra.prefix import Prefix, text_of
from infra.settings import SetupError
from tasks.dataset.answers import Answers
from tasks.dataset.cases import Case, Window
from tasks.dataset.frozen import Dataset, freeze, load
from tasks.dataset.ledger import NOTHING, OBJECTED, Fault, Ledger
from tasks.dataset.relabel import Relabel, Relabeller
from tasks.dataset.similarity import Hashes, NearDuplicates, template
from tasks.dataset.splits import Entries, split
from tasks.gate.looks import BUDGET, used_up
from tasks.teachers import teacher_for

__all__ = ["CurateSpec", "Dataset", "curate", "load"]

Progress = Callable[[int, int, str], None]
Read = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]
SHARED_BY = 0.95  # of a workload's requests begin with the prefix that is baked
SAMPLE = 4000  # requests by which the template is known
PREFIXES = 1000  # a prefix that nearly all share is among the first of them


@dataclass(frozen=True)
class CurateSpec:
    """How traffic becomes a dataset.

    Attributes:
        min_rows: Fewer usable interactions cannot be split into anything that says something.
        max_rows: The latest interactions that are looked at.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    holdout: Annotated[float, Field(gt=0, lt=1, description="Share of the rows, the latest, that only measure")] = 0.25
    validation: Annotated[float, Field(ge=0, lt=1, description="Share of the rest that picks the best epoch")] = 0.05
    near_duplicate: Annotated[float, Field(gt=0, le=1, description="Jaccard index of near-duplicate requests")] = 0.7
    bake: Annotated[
        bool, Field(description="Leave the shared system prompt and tools out of what the student reads")
    ] = True
    relabel: Annotated[
        Relabel,
        Field(
            description="What a teacher that can be asked answers anew: students' answers; `unlabelled`: also what the "
            "log has no usable answer to; `all`: everything but corrections. An endpoint costs money"
        ),
    ] = "students"
    min_rows: Annotated[int, Field(ge=4, description="Usable interactions without which there is no dataset")] = 40
    max_rows: Annotated[int, Field(ge=4, description="Latest interactions to look at")] = 50_000
    looks: Annotated[
        int,
        Field(ge=1, description="Candidates that a holdout decides on, then a fresh one is cut"),
    ] = BUDGET
    seed: Annotated[int, Field(description="Of the clusters, and of the split of train and validation")] = 0


def curate(
    workload: str, spec: CurateSpec, *, progress: Progress | None = None, flow_run_id: str | None = None
) -> dict[str, Any]:
    """Freeze a workload's traffic as a dataset.

    The same rows and spec give the same id, in whatever order and database they are stored.

    Returns:
        dataset_id, workload, path, the number of rows in each split (`frozen.SPLITS`), and the report: where every
        interaction went, what feedback did, how many clusters, whether the answers are a closed set, and what baking
        saves of the prompt.

    Raises:
        SetupError: The workload is unknown, or too little of its traffic is usable.
    """
    relabeller = Relabeller(teacher_for(workload), spec.relabel, progress)
    window = Window.latest(workload, spec.max_rows)
    prefix, share, shared = survey(window, spec)
    ledger = Ledger(spec.seed)
    with NearDuplicates(spec.near_duplicate, shared) as near:
        for page in window.pages():
            for case in page:
                read = read_of(case.request, prefix)
                near.add(spoken(read[0] if read else case.request["messages"]))
                ledger.enter(case, complete(case, read))
            if progress:
                progress(len(ledger), spec.max_rows, "curate")
        clusters = near.clusters(progress)
    entries = Entries(np.arange(len(ledger)), ledger.ids, ledger.conversations, clusters, ledger.lots)
    left_out: Counter[str] = Counter()
    usable, disliked, judgements = ledger.judged(relabeller.asks, left_out)
    left_out[OBJECTED] = len(disliked)
    spent = np.isin(entries.ids[usable], used_up(workload, spec.looks))
    left_out["in a holdout that is used up"] = int(spent.sum())
    usable = usable[~spent]
    if len(usable) < spec.min_rows:
        raise too_small(workload, f"{len(usable)} usable rows, under min_rows={spec.min_rows}", len(ledger), left_out)
    held_out = entries.take(np.isin(entries.ids, held_out_before(workload)))
    splits = split(entries.take(usable), entries.take(disliked), spec.holdout, spec.validation, held_out, left_out)
    left_out[OBJECTED] -= len(splits["disliked"])
    chosen = Chosen(window, prefix, ledger, splits, judgements, relabeller, clusters)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        check({name: len(ids) for name, ids in splits.items()})  # before the teacher is asked, who costs money
        yield from chosen.rows()
        check({name: chosen.sizes[name] for name in splits})

    def check(sizes: dict[str, int]) -> None:
        if not sizes["train"] or not sizes["holdout"]:
            found = ", ".join(f"{sizes[name]} for {name}" for name in ("train", "validation", "holdout"))
            raise too_small(workload, f"{found} after the split", len(ledger), left_out)

    return freeze(workload, rows(), prefix, asdict(spec), lambda: chosen.report(left_out, share), flow_run_id)


def survey(window: Window, spec: CurateSpec) -> tuple[Prefix | None, float, Hashes]:
    """What requests share: the prefix to bake, the share of those that begin with the commonest, and the template."""
    counts: Counter[str] = Counter()
    found: dict[str, Prefix] = {}
    sample: list[dict[str, Any]] = []
    every = 1
    for n, request in enumerate(window.requests()):
        prefix = Prefix.of(request)
        counts[prefix.fingerprint] += 1
        if len(found) < PREFIXES:
            found.setdefault(prefix.fingerprint, prefix)
        if n % every == 0:
            sample.append(request)
        if len(sample) > SAMPLE:
            sample, every = sample[::2], 2 * every
    fingerprint, n = max(counts.items(), key=lambda item: (item[1], item[0]))
    total = counts.total()
    baked = found.get(fingerprint) if spec.bake and n >= SHARED_BY * total else None
    if baked and baked.system is None and not baked.tools:
        baked = None
    return baked, n / total if spec.bake else 0.0, template(asked(request, baked) for request in sample)


def held_out_before(workload: str) -> list[int]:
    """Interactions that an earlier dataset of the workload held out."""
    with session(write=False) as db:
        return list(
            db.scalars(
                select(DatasetItem.interaction_id)
                .join(DatasetRow, DatasetRow.id == DatasetItem.dataset_id)
                .where(DatasetRow.workload == workload, DatasetItem.split == "holdout")
            )
        )


def read_of(request: dict[str, Any], prefix: Prefix | None) -> Read | None:
    """Messages and tools as the student reads them; None where the request begins with another prefix."""
    messages, tools = request["messages"], request.get("tools")
    return prefix.strip(messages, tools) if prefix else (messages, tools or None)


def asked(request: dict[str, Any], prefix: Prefix | None) -> str:
    """What a request says after the prefix, as text; all of it where it begins with another."""
    read = read_of(request, prefix)
    return spoken(read[0] if read else request["messages"])


def spoken(messages: Sequence[dict[str, Any]]) -> str:
    """What messages say, as text."""
    return "\n".join(_words(message) for message in messages)


def _words(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    said = [text_of(message.get("content")) or "", *(f"{f['name']} {f['arguments']}" for f in calls)]
    return " ".join(part for part in said if part)


def complete(case: Case, read: Read | None) -> Fault:
    """Give a case what the student reads of it; why there is none."""
    if read is None:
        return "another prefix than the baked one"
    messages, tools = read
    texts = [text_of(message.get("content")) for message in messages]
    if any(text is None and message.get("content") is not None for text, message in zip(texts, messages, strict=True)):
        return "a request that is not only text"
    case.messages = [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
    case.tools = tools
    return ""


@dataclass
class Chosen:
    """The cases that were chosen, read again, and what became of them."""

    window: Window
    prefix: Prefix | None
    ledger: Ledger
    splits: dict[str, NDArray[np.int64]]
    judgements: dict[int, Judgement]
    relabeller: Relabeller
    clusters: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.unanswered: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.origins: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.kept = bytearray(len(self.ledger))  # 1 for a cluster of which there is a row
        self.answers = Answers()
        self.with_logprobs = 0

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each with the name of its split, in order of time."""
        where = np.zeros(len(self.ledger), np.int8)
        names = list(self.splits)
        for number, name in enumerate(names, 1):
            where[np.isin(self.ledger.ids, self.splits[name])] = number
        for page in self.window.pages():
            places = self.ledger.places([case.id for case in page])
            mine = [
                (case, place) for case, place in zip(page, places, strict=True) if place is not None and where[place]
            ]
            for case, place in mine:
                complete(case, read_of(case.request, self.prefix))
                case.judgement = self.judgements.get(place, NOTHING)
                if names[where[place] - 1] != "disliked":
                    self.relabeller.decide(case)
            self.relabeller.ask([case for case, _ in mine])
            for case, place in mine:
                name = names[where[place] - 1]
                if name != "disliked":
                    if case.expected is None:
                        self.unanswered[case.unanswered] += 1
                        continue
                    self._count(case, int(self.clusters[place]))
                    self.answers.add(name, case.expected)
                self.sizes[name] += 1
                yield name, case.row()

    def _count(self, case: Case, cluster: int) -> None:
        self.rules[case.judgement.rule] += 1
        self.origins[case.origin] += 1
        self.kept[cluster] = 1
        self.with_logprobs += case.logprobs is not None
        self.characters["whole"] += len(to_column([case.request["messages"], case.request.get("tools")]))
        self.characters["read"] += len(to_column([case.messages, case.tools]))

    def report(self, left_out: Counter[str], share: float) -> dict[str, Any]:
        """Where every interaction went, and what baking leaves of the prompt in characters (`distill`: in tokens)."""
        left_out.update(self.unanswered)
        rows, whole, read = self.origins.total(), self.characters["whole"], self.characters["read"]
        return {
            "interactions": len(self.ledger),
            "left_out": {reason: n for reason, n in sorted(left_out.items()) if n},
            "feedback": dict(sorted(self.rules.items())),
            "origins": dict(sorted(self.origins.items())),
            "clusters": sum(self.kept),
            "answers": self.answers.report(),
            "logprobs": self.with_logprobs,
            **self.relabeller.report(),
            "prefix_share": round(share, 4),
            "prompt_characters": round(whole / rows),
            "prompt_characters_read": round(read / rows),
            "prompt_saved": round(1 - read / whole if self.prefix else 0.0, 4),
        }


def too_small(workload: str, found: str, interactions: int, left_out: Counter[str]) -> SetupError:
    reasons = "; ".join(f"{reason}: {n}" for reason, n in left_out.most_common() if n)
    why = f" ({reasons})" if reasons else ""
    return SetupError(
        f"workload {workload!r} is too small to split: {found}, of {interactions} interactions{why}; "
        "ingest more traffic, or lower curate.min_rows or curate.holdout"
    )
