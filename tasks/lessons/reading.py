"""What a local teacher reads: the requests as applications send them, in its own template, and what it says to them.

A teacher that has a prefix baked in reads requests without it, as the student does; any other reads the system prompt
and tools that the student has to learn. Its answers' probabilities are computed once and kept beside the dataset.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lessons.lesson import Desk
from tasks.training.examples import Example, encode

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.teachers.hf import Opinion


def as_the_teacher_reads(desk: Desk, tokenizer: Any) -> dict[int, Example]:
    """The rows in the teacher's tokens, by number; without those that it cannot read: `UNREAD` says why."""
    from infra.prefix import Prefix
    from tasks.teachers.hf import manifest_of

    assert desk.teacher is not None
    baked = Prefix.from_json(manifest_of(desk.teacher.path).get("prefix"))
    left_out = desk.dataset.prefix
    read: dict[int, dict[str, Any]] = {}
    for number in sorted({e.row for e in desk.examples}):
        row = desk.rows[number]
        messages, tools = row["messages"], row["tools"]
        if baked and left_out:  # the same one, or what it is redacted to
            asked = (messages, tools) if left_out.strip(*baked.restore([])) else None
        elif baked:
            asked = baked.strip(messages, tools)
        else:
            asked = left_out.restore(messages) if left_out else (messages, tools)
        if asked:
            read[number] = {**row, "messages": asked[0], "tools": asked[1]}
    numbers = list(read)
    examples = encode(tokenizer, list(read.values()), desk.teacher.context)
    return {numbers[e.row]: e._replace(row=numbers[e.row]) for e in examples}


UNREAD = "the teacher has another prefix baked in, or the request is longer than its context"


def said(desk: Desk, asked: Sequence[Example], what: str, keep: "Opinion") -> list[tuple["Tensor", ...]]:
    """What `keep` keeps of the teacher's distribution at each answer position of sequences in its tokens.

    Computed once: `what` names it in the file beside the dataset.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from tasks.teachers.hf import model_fingerprint

    assert desk.teacher is not None
    digest = hashlib.sha256(json.dumps([(e.prompt, e.ids) for e in asked]).encode()).hexdigest()
    name = f"teacher-{model_fingerprint(desk.teacher.path)[:12]}-{digest[:12]}-{what}.safetensors"
    path = Path(desk.dataset.path) / name
    if asked and not path.exists():
        found = desk.teacher.read([(e.ids, e.prompt) for e in asked], keep, desk.progress)
        offsets = [0, *accumulate(len(parts[0]) for parts in found)]
        stored = {f"part{n}": torch.cat(parts) for n, parts in enumerate(zip(*found, strict=True))}
        save_file({**stored, "offsets": torch.tensor(offsets)}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    if not asked:
        return []
    kept = load_file(path)
    bounds = kept.pop("offsets").tolist()
    parts = [kept[f"part{n}"] for n in range(len(kept))]
    return [tuple(part[a:b] for part in parts) for a, b in pairwise(bounds)]
