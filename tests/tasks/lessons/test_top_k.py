"""An endpoint's log-probabilities from the log to the loss, through the real ingest, curation and dataset."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from infra.engines.chat import load_tokenizer
from tasks.curate import CurateSpec, curate
from tasks.dataset.frozen import load
from tasks.ingest import ingest
from tasks.lessons import Logits
from tasks.lessons.imitation import imitate
from tasks.lessons.lesson import Desk
from tasks.lessons.top_k import followed, known_of
from tasks.sources import JSONL
from tasks.training.examples import encode
from tests.conftest import living_in
from tests.tasks.lessons.toy import small_model
from tests.tasks.teachers.test_logprobs import row_of

ANSWERS = ["where is it", "order 48213", "please come"]
NONE, OTHER = "no log-probabilities", "a token of the teacher is none of the student's"


def record(tokenizer: Any, n: int) -> dict[str, Any]:
    """A request and its answer; of three one has log-probabilities, one has those of other tokens, one has none."""
    text = ANSWERS[n % len(ANSWERS)]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if n // 3 % 3 < 2:
        choice = {**choice, "logprobs": row_of(tokenizer, text, k=4, seed=n).choice["logprobs"]}
    if n // 3 % 3 == 1:
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
    asked = [{"role": "user", "content": " ".join(f"{word}{n * 7 % 31}" for word in "why what who how when".split())}]
    return {
        "id": f"r{n}", "workload_id": "intents", "timestamp": 1_760_000_000 + n,
        "request": {"model": "big", "messages": asked}, "response": {"choices": [choice]},
    }  # fmt: skip


def test_rows_with_log_probabilities_are_followed_and_those_without_are_imitated(bare: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bare)
    lines = [json.dumps(record(tokenizer, n)) for n in range(90)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    with living_in(tmp_path / "home", STUDENT=str(bare), TEACHER="", THREADS="1"):
        ingest(JSONL(paths=(str(tmp_path / "log.jsonl"),)))
        dataset = load(curate("intents", CurateSpec())["dataset_id"])
        rows = dataset.split("train")
        examples = encode(tokenizer, rows, 512)
        desk = Desk(dataset, rows, examples, tokenizer, None, 0, None)
        known = known_of(desk, 32, None)

    kind = {e.row: int(rows[e.row]["record"].split("r")[-1]) // 3 % 3 for e in examples}
    counts = Counter(kind.values())
    assert known.keys() == {row for row, which in kind.items() if which == 0}
    assert desk.report == {"followed": counts[0], "not_followed": {OTHER: counts[1], NONE: counts[2]}} and counts[0] > 5
    for e in examples:
        if e.row in known:
            number = int(rows[e.row]["record"].split("r")[-1])
            whole = row_of(tokenizer, ANSWERS[number % 3], k=4, seed=number).whole
            best, ids = whole.topk(4)
            values, tokens = known[e.row]
            torch.testing.assert_close(values[:-1, :4].float(), best, atol=6e-3, rtol=1e-3)
            assert tokens[:-1, :4].tolist() == ids.tolist() and values[-1].isneginf().all()

    group = sorted(examples, key=lambda e: kind[e.row])[counts[0] - 2 : counts[0] + 2]
    follow = followed(group, known)[2].split([len(e.ids) - e.prompt for e in group])
    assert [part.tolist() for part in follow] == [
        [float(kind[e.row] == 0)] * (len(e.ids) - e.prompt - 1) + [0.0] for e in group
    ]
    model = small_model(vocabulary=len(tokenizer))
    lesson = Logits().toward(known)
    assert torch.equal(lesson(model, group[2:], 0.5).total, imitate(model, group[2:]).total)
    assert lesson(model, group[:2], 0.5).mean > imitate(model, group[:2]).mean + 0.1
