"""A classifier: an encoder with a head, for a workload whose answers are a closed set (`dataset/answers.py`).

Each distinct answer of the training rows, by what it means, is a label: a text, or calls with their arguments. The head
begins as a probe of the encoder (`training/probe.py`), by which rows that are likely mistakes are left out
(`training/doubt.py`); then both are trained (`training/classify.py`).

It does not answer everything. Its probabilities are calibrated on the validation rows, and what it is less sure of than
`abstain` goes to the teacher when it is served: what is out of scope, and what it would rather guess. That threshold is
a probability and not a share of errors on the validation rows, because their answers are the teacher's, wrong ones
included. An abstention is measured as it is served: the teacher's answer, at the teacher's cost (`evaluate.py`).
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from infra.database.policy import meaning
from infra.engines.labels import Reader, label_of, said
from infra.settings import SetupError, settings
from tasks.dataset.answers import MOST
from tasks.lessons.lesson import Progress
from tasks.teachers.hf import model_fingerprint

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset
    from tasks.training.classify import Text

FEWEST = 2  # rows of an answer that can be learned; one alone is more likely a slip
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Classifier:
    """An encoder with a head, where the answers are a closed set."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: Literal["classifier"] = "classifier"
    base: Annotated[str, Field(description="Hugging Face id or path; empty takes FLYWHEEL_ENCODER")] = ""
    learning_rate: Annotated[float, Field(gt=0, lt=0.1, description="Peak rate of AdamW")] = 1e-4
    epochs: Annotated[int, Field(ge=0, le=100, description="Passes over the training rows; 0: the head alone")] = 4
    batch_tokens: Annotated[int, Field(ge=64, description="Tokens in one step, padding included")] = 1024
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Share of an answer that all labels get")] = 0.1
    doubt: Annotated[
        float,
        Field(ge=0, description="Leave out rows whose answer is so many times less likely than another; 0: none"),
    ] = 5.0
    abstain: Annotated[
        float, Field(ge=0, lt=1, description="What is less likely right than this goes to the teacher")
    ] = 0.5
    max_length: Annotated[int, Field(ge=16, description="Tokens of a request that are read, the last ones")] = 256
    checkpoint_steps: Annotated[int, Field(ge=1, description="Steps between checkpoints")] = 100
    seed: Annotated[int, Field(description="Of the order of the batches, the dropout and the head's first weights")] = 0

    @property
    def path(self) -> str:
        """Of the encoder; empty where there is none."""
        return self.base or settings().encoder

    def unfit(self, answers: Mapping[str, Any]) -> str:
        """Why there is no classifier for a dataset's `answers` (`Answers.report`); empty where there is one."""
        if not answers.get("closed"):
            distinct, covered = answers.get("distinct", 0), answers.get("covered", 0)
            number = f"over {MOST:,}" if distinct > MOST else f"{distinct:,}"
            return f"the answers are no closed set ({number} distinct, {covered:.0%} of the later ones known)"
        if not self.path:
            return f"FLYWHEEL_ENCODER names no encoder, with which one could give these {answers['distinct']:,} answers"
        if missing := [package for package in PACKAGES if find_spec(package) is None]:
            return f"no package {', '.join(missing)}; pip install 'flywheel[onnx]'"
        return ""

    def parents(self, dataset: "Dataset") -> list[Any]:
        """The encoder's fingerprint: what else decides the weights."""
        return [model_fingerprint(self.path)]

    def train(self, dataset: "Dataset", folder: Path, work: Path, progress: Progress | None) -> dict[str, Any]:
        """Train on a dataset; the student is in `folder`, the returned report says what it took.

        Raises:
            SetupError: The answers are no closed set, or the base is no encoder.
        """
        if problem := self.unfit(dataset.report["answers"]):
            raise SetupError(f"no classifier for {dataset.workload!r}: {problem}")
        import torch

        from tasks.training.classify import ClassifierTrainer
        from tasks.training.encoder import Classifying, load_encoder, write

        torch.set_num_threads(settings().cores)
        torch.manual_seed(self.seed)
        rows = dataset.split("train")
        labels = labels_of(rows)
        encoder = load_encoder(self.path)
        reader = self.reader(encoder, folder)
        model = Classifying(encoder, len(labels)).to("cuda" if torch.cuda.is_available() else "cpu")
        train, validation = (texts(part, labels, reader) for part in (rows, dataset.split("validation")))
        kept = self.probe(model, train, reader, work)
        trainer = ClassifierTrainer(model, self, work, reader)
        trainer.run(kept, validation, progress)

        warmth = trainer.calibrate(validation)
        write(model, folder)
        manifest = {"labels": labels, "threshold": self.abstain, "max_length": self.max_length}
        (folder / "flywheel.json").write_text(json.dumps(manifest))
        return {
            "base": self.path, "labels": len(labels), "examples": len(kept), "doubted": len(train) - len(kept),
            "rare": len(rows) - len(train), "steps": trainer.step, "history": trainer.history,
            "curve": trainer.curve.points,
            "temperature": round(warmth, 3),
        }  # fmt: skip

    def reader(self, encoder: Any, folder: Path) -> Reader:
        """What reads requests, from the encoder's tokenizer, which is put into `folder`.

        Raises:
            SetupError: It has none, or reads fewer tokens than `max_length`.
        """
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(self.path).save_pretrained(folder)
        except Exception as problem:  # transformers raises a dozen kinds for "there is none"
            raise SetupError(f"encoder {self.path!r} has no tokenizer ({problem}); set FLYWHEEL_ENCODER") from problem
        room = getattr(encoder.config, "max_position_embeddings", None)
        if room and self.max_length > room:
            raise SetupError(f"encoder {self.path!r} reads {room} tokens, max_length is {self.max_length}; lower it")
        encoder.config.save_pretrained(folder)
        return Reader(folder, self.max_length)

    def probe(self, model: Any, train: "list[Text]", reader: Reader, work: Path) -> "list[Text]":
        """Let the head begin as a probe; returns the rows that are no likely mistakes. A killed run has done it."""
        import torch
        from safetensors.torch import load_file

        from tasks.training.doubt import doubted
        from tasks.training.loop import write_tensors
        from tasks.training.probe import features, regression

        file = work / "probe.safetensors"
        if not file.exists():
            read = features(model, train, reader)
            labels, weights = (torch.tensor(part) for part in ([t.label for t in train], [t.weight for t in train]))
            doubt = doubted(read, labels, weights > 1, self.doubt)
            weight, bias = regression(read[~doubt], labels[~doubt], weights[~doubt], len(model.head.bias))
            write_tensors({"doubted": doubt, "weight": weight, "bias": bias}, file)
        found = load_file(file)
        out = found.pop("doubted").tolist()
        model.head.load_state_dict(found)
        return [text for text, doubt in zip(train, out, strict=True) if not doubt]


def labels_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The label of each meaning that enough rows have, in the order of their meanings."""
    counts = Counter(meaning(row["expected"]) for row in rows)
    found = {meaning(row["expected"]): label_of(row["expected"]) for row in rows}
    return [found[meant] for meant in sorted(found) if counts[meant] >= FEWEST]


def texts(rows: list[dict[str, Any]], labels: list[dict[str, Any]], reader: Reader) -> "list[Text]":
    """The rows whose answer is a label, as token ids."""
    from tasks.training.classify import Text

    numbers = {meaning(label): number for number, label in enumerate(labels)}
    found = []
    for row in rows:
        number, text = numbers.get(meaning(row["expected"])), said(row)
        if number is not None and text is not None:
            found.append(Text(reader.ids(text), number, row["weight"]))
    return found
