"""A teacher whose weights are at hand: it answers, and it gives its logits."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import SetupError, settings
from tasks.teachers.answers import Answer, Question, whole
from tasks.teachers.cache import Keep, through
from tasks.teachers.tally import Tally

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from infra.engines import Engine

Progress = Callable[[int, int, str], None]

Opinion = Callable[["Tensor", "Tensor"], "tuple[Tensor, ...]"]
"""(log-probabilities float32 [n, vocabulary], tokens that were written long [n]) → tensors [n, ...]"""


def load_model(path: str) -> "PreTrainedModel":
    """A causal LM in float32 from a Hugging Face id or path.

    Raises:
        SetupError: There is no causal language model there.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    except Exception as problem:  # transformers raises a dozen kinds for "this is no model"
        first = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
        raise SetupError(
            f"model {path!r} is not a Hugging Face causal LM ({first}); "
            "give a folder with config.json and safetensors, a hub id, or `seedling`"
        ) from problem
    return model


def model_fingerprint(path: str) -> str:
    """Digest of a model's configuration and weights; a hub id stands for itself."""
    digest = hashlib.sha256(path.encode() if not Path(path).is_dir() else b"")
    for file in sorted(Path(path).glob("*")) if Path(path).is_dir() else []:
        if file.suffix in (".json", ".safetensors", ".jinja"):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def manifest_of(path: str) -> dict[str, Any]:
    """The `flywheel.json` beside a model, or nothing."""
    file = Path(path) / "flywheel.json"
    manifest: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return manifest


@dataclass(frozen=True)
class LocalTeacher:
    """A Hugging Face causal LM on this machine."""

    path: str
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def identity(self) -> str:
        """What its scorecard is known by."""
        return model_fingerprint(self.path)

    def artifact(self) -> Path:
        """A folder that an engine loads: the model as float16 GGUF where its architecture allows, else as it is."""
        folder = settings().home / "teachers" / model_fingerprint(self.path)[:16]
        if folder.exists():
            return folder
        from infra.engines.chat import load_tokenizer
        from quant import QuantError, export

        model = load_model(self.path)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        load_tokenizer(Path(self.path)).save_pretrained(partial)
        (partial / "flywheel.json").write_text(json.dumps({**manifest_of(self.path), "format": "gguf"}, indent=2))
        try:
            export(model, partial / "model.gguf", "gguf", partial)
        except QuantError:
            model.save_pretrained(partial)
        partial.rename(folder)
        return folder

    def behind_gateway(self) -> "Engine":
        """What the gateway asks where no champion answers: the model, loaded."""
        from infra.engines import load

        return load(self.artifact())

    def answer(self, questions: Sequence[Question], progress: Progress | None = None) -> list[Answer]:
        """An answer a question, in order, greedily; from the database where it was asked before.

        Raises:
            SetupError: A request does not begin with the prefix that this teacher has baked in.
        """

        def ask(bodies: Mapping[str, dict[str, Any]], keep: Keep) -> None:
            answers = self._answers(list(bodies.values()), progress)
            for answer in answers:
                self.tally.add(answer)
            keep(dict(zip(bodies, answers, strict=True)))

        bodies = [whole(question.request) for question in questions]
        return through(self.identity, questions, bodies, ask, self.tally, None)

    def _answers(self, requests: Sequence[dict[str, Any]], progress: Progress | None) -> list[Answer]:
        engine = self.behind_gateway()
        try:
            read = [engine.strip(request) for request in requests]
            if None in read:
                raise SetupError(
                    f"teacher {self.name!r} knows only its own system prompt and tools, and {read.count(None)} of "
                    f"{len(read)} requests begin otherwise; set FLYWHEEL_TEACHER to a general model"
                )
            replies = engine.chat([r for r in read if r], progress)
        finally:
            engine.close()
        return [
            Answer(r.message, r.finish_reason, prompt_tokens=r.prompt_tokens, completion_tokens=r.completion_tokens)
            for r in replies
        ]

    @property
    def context(self) -> int:
        """Tokens that it can read at once."""
        from transformers import AutoConfig

        return int(getattr(AutoConfig.from_pretrained(self.path), "max_position_embeddings", None) or 1 << 30)

    def read(
        self, sequences: Sequence[tuple[list[int], int]], keep: Opinion, progress: Progress | None = None
    ) -> list[tuple["Tensor", ...]]:
        """What `keep` keeps of the teacher's distribution at each answer position.

        Args:
            sequences: (ids of prompt and answer, length of the prompt) in the teacher's own tokens.

        Returns:
            For each sequence what `keep` made of its answer's positions.
        """
        import torch

        from tasks.training.forward import logits_at

        model = load_model(self.path).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
        found: dict[int, tuple[Tensor, ...]] = {}
        with torch.inference_mode():
            for start in range(0, len(order), 16):
                group = order[start : start + 16]
                width = max(len(sequences[i][0]) for i in group)
                # Right padding needs no mask under causal attention: no answer position can see it.
                ids = torch.tensor([sequences[i][0] + [0] * (width - len(sequences[i][0])) for i in group])
                mask = torch.zeros_like(ids, dtype=torch.bool)
                for row, i in enumerate(group):
                    whole, prompt = sequences[i]
                    mask[row, prompt - 1 : len(whole) - 1] = True
                written = ids.roll(-1, 1)[mask]
                logp = logits_at(model, ids.to(model.device), mask.to(model.device)).float().log_softmax(-1).cpu()
                lengths = mask.sum(-1).tolist()
                parts = zip(*(torch.split(part, lengths) for part in keep(logp, written)), strict=True)
                found |= zip(group, parts, strict=True)
                if progress:
                    progress(len(found), len(sequences), "teacher logits")
        return [found[i] for i in range(len(sequences))]


def likeliest(k: int) -> Opinion:
    """The k most likely tokens: their log-probabilities float16 [n, k] and ids int32 [n, k]."""

    def keep(logp: "Tensor", written: "Tensor") -> tuple["Tensor", ...]:
        values, tokens = logp.topk(min(k, logp.shape[-1]), dim=-1)
        return values.half(), tokens.int()

    return keep


def of_the_answer(logp: "Tensor", written: "Tensor") -> tuple["Tensor", ...]:
    """The log-probability of each token that was written, float32 [n], and whether it is the likeliest, bool [n]."""
    return logp.gather(-1, written[:, None]).squeeze(-1), logp.argmax(-1) == written
