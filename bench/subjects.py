"""What is quantized in bench/quant.py: models, the text to calibrate on, other text to measure on, and a task.

| subject     | model                                 | calibrated on          | measured on                        |
|-------------|---------------------------------------|------------------------|------------------------------------|
| stories260k | 0.26 M Llama, trained on TinyStories  | novels                 | WikiText-2 test and other novels   |
| babyllama   | 0.94 M Llama, 105 tokens, TinyStories | novels                 | the same                           |
| student     | 4.2 M seedling, base of every student | service calls, seed 11 | service calls, seed 12             |
| teacher     | 7.4 M seedling, the shop's teacher    | conversations, train   | conversations in holdout phrasings |

The first two are real pretrained models; the seedlings come with the project and were trained on synthetic calls. All
calibrate on the same number of tokens, packed into sequences without padding, so that every library reads the same.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("FLYWHEEL_SHARED", ROOT.parent / "shared"))
LENGTH = 256
CALIBRATION, EVALUATION = 128, 64
TASKS = 200


@dataclass(frozen=True)
class Subject:
    """A model with its texts.

    Attributes:
        calibration: ids Long[n, LENGTH].
        evaluation: ids Long[m, LENGTH], from other text; then one padded row a task.
        counted: Bool[m, LENGTH], where the next token's distribution is measured: everywhere, or for the seedlings,
            which were only ever taught to answer, within answers.
        tasks: (length of the prompt, of prompt and answer) of the last rows; empty where the model has no task.
    """

    name: str
    folder: Path
    calibration: Tensor
    evaluation: Tensor
    counted: Tensor
    tasks: tuple[tuple[int, int], ...] = ()

    def load(self) -> nn.Module:
        """The unquantized model, float32."""
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        return model

    @torch.no_grad()
    def logits(self, model: Any) -> Tensor:
        """float32 [m, LENGTH, V] on the evaluation ids."""
        return torch.cat([model(input_ids=ids, use_cache=False).logits.float() for ids in self.evaluation.split(8)])

    def task_score(self, logits: Tensor) -> list[bool]:
        """For each task, whether its answer is reproduced token by token, greedily, in full.

        Greedy decoding does so exactly when each token of it is the argmax given those before it.
        """
        first = len(self.evaluation) - len(self.tasks)
        right = []
        for row, (prompt, length) in enumerate(self.tasks, start=first):
            said = self.evaluation[row, prompt:length]
            right.append(torch.equal(logits[row, prompt - 1 : length - 1].argmax(-1), said))
        return right


def subject(name: str) -> Subject:
    """One of `SUBJECTS`."""
    return SUBJECTS[name]()


def _stories(folder: str) -> Subject:
    from transformers import AutoTokenizer

    path = SHARED / "models" / folder
    tokenizer = AutoTokenizer.from_pretrained(path)

    def packed(texts: Iterable[str], rows: int) -> Tensor:
        return _packed((tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts), rows)

    novels = gzip.decompress((SHARED / "data/text/novels_train.txt.gz").read_bytes()).decode()
    others = gzip.decompress((SHARED / "data/text/novels_valid.txt.gz").read_bytes()).decode()
    wiki = (SHARED / "data/text/wikitext2_test.txt").read_text()
    measured = torch.cat([packed(_pieces(text, Random(2)), EVALUATION // 2) for text in (wiki, others)])
    calibration = packed(_pieces(novels, Random(1)), CALIBRATION)
    return Subject(folder.split("-")[0], path, calibration, measured, torch.ones_like(measured, dtype=torch.bool))


def _seedling(name: str) -> Subject:
    from transformers import AutoTokenizer

    from infra.engines.chat import render
    from infra.seedling import services, shop
    from infra.seedling.make import IGNORED, conversation, encode

    path = ROOT / "infra/seedling/models" / name
    tokenizer = AutoTokenizer.from_pretrained(path)

    def lessons(seed: int, part: shop.Part) -> Iterator[list[dict[str, Any]]]:
        rng = Random(seed)
        vocabulary = services.Vocabulary((ROOT / "infra/seedling/services.toml").read_text())
        while True:
            yield conversation(shop.exchange(rng, part)) if name == "teacher" else services.lesson(rng, vocabulary)

    calibration = _packed((render(tokenizer, m) for m in lessons(11, "train")), CALIBRATION)
    examples = (encode(tokenizer, m) for m in lessons(12, "holdout"))
    taught = [pair for ids, labels in islice(examples, 2000) for pair in zip(ids, labels, strict=True)]
    ids, labels = torch.tensor(taught[: EVALUATION * LENGTH]).view(EVALUATION, LENGTH, 2).unbind(-1)
    counted = functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    asked = lessons(13, "holdout")
    pairs = ((render(tokenizer, m[:-1], prompt=True), render(tokenizer, m)) for m in asked)
    tasks = list(islice(((len(prompt), whole) for prompt, whole in pairs if len(whole) <= LENGTH), TASKS))
    rows = torch.tensor([whole + [0] * (LENGTH - len(whole)) for _, whole in tasks])
    ids, counted = torch.cat([ids, rows]), torch.cat([counted, torch.zeros_like(rows, dtype=torch.bool)])
    spans = tuple((prompt, len(whole)) for prompt, whole in tasks)
    return Subject(name, path, calibration, ids, counted, spans)


def _pieces(text: str, rng: Random) -> Iterator[str]:
    """Random passages of a text."""
    while True:
        start = rng.randrange(len(text) - 4000)
        yield text[start : start + 1500]


def _packed(documents: Iterable[list[int]], rows: int) -> Tensor:
    """Long[rows, LENGTH], documents one after another."""
    ids: list[int] = []
    for document in documents:
        ids += document
        if len(ids) >= rows * LENGTH:
            return torch.tensor(ids[: rows * LENGTH]).view(rows, LENGTH)
    raise ValueError(f"text ends after {len(ids)} tokens, {rows * LENGTH} are needed; pass more")


SUBJECTS = {
    "stories260k": lambda: _stories("stories260k-llama"),
    "babyllama": lambda: _stories("babyllama-tok105-llama"),
    "student": lambda: _seedling("student"),
    "teacher": lambda: _seedling("teacher"),
}
