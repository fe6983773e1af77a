"""The ONNX Runtime engine: a classifier, which answers with one of its labels in one pass through an encoder.

An answer of which the classifier is less sure than its manifest's `threshold` is none: it abstains, and whoever asked
has to ask somebody else (the gateway: the teacher). So it does with a request that is not only text. A request's
`max_tokens` cuts nothing off; a label is said whole or not at all.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from infra.engines.engine import ABSTAINED, Engine, Progress, Reply
from infra.engines.labels import Reader, answer_of, said, spoken
from infra.settings import SetupError, settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Onnx(Engine):
    """Answers in batches of requests of similar length."""

    name = "onnx"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            import onnxruntime
        except ImportError as problem:
            raise SetupError(
                "a classifier is served by the package 'onnxruntime'; pip install 'flywheel[onnx]'"
            ) from problem
        self.labels: list[dict[str, Any]] = self.manifest["labels"]
        self.threshold: float = self.manifest["threshold"]
        self.reader = Reader(folder, self.manifest["max_length"])
        self.tokens = [max(1, len(self.reader.ids(spoken(label)))) for label in self.labels]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = settings().cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a gateway mostly waits
        file = folder / "model.onnx"
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # the runtime's own kinds, which share no parent
            first = str(problem).strip().splitlines()[0][:200]
            raise SetupError(f"ONNX Runtime cannot load {file} ({first}); quantize the student again") from problem
        self.inputs = [i.name for i in self.session.get_inputs()]

    def chat(
        self, requests: Sequence[dict[str, Any]], progress: Progress | None = None, parallel: int = 8
    ) -> list[Reply]:
        texts = [said(request) for request in requests]
        ids = [self.reader.ids(text or "") for text in texts]
        order = sorted(range(len(requests)), key=lambda i: len(ids[i]))
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), parallel):
            group = order[start : start + parallel]
            started = monotonic()
            sure = self.probabilities([ids[i] for i in group])
            elapsed = 1000 * (monotonic() - started)
            for i, row in zip(group, sure, strict=True):
                replies[i] = self._reply(None if texts[i] is None else row, len(ids[i]), elapsed)
            if progress:
                progress(len(replies), len(requests), "answers")
        return [replies[i] for i in range(len(requests))]

    def probabilities(self, sequences: Sequence[Sequence[int]]) -> "NDArray[np.float32]":
        """Of each label, float32 [b, labels], for token ids."""
        import numpy as np

        batch = self.reader.batch(sequences)
        zeros = np.zeros_like(batch["input_ids"])
        (logits,) = self.session.run(None, {name: batch.get(name, zeros) for name in self.inputs})
        risen = np.exp(logits - logits.max(-1, keepdims=True))
        shares: NDArray[np.float32] = risen / risen.sum(-1, keepdims=True)
        return shares

    def _reply(self, sure: "NDArray[np.float32] | None", read: int, elapsed: float) -> Reply:
        """The label that is surest, if it is sure enough; none where there is nothing to be sure of."""
        best = 0 if sure is None else int(sure.argmax())
        if sure is None or sure[best] < self.threshold:
            return Reply({"role": "assistant", "content": ""}, ABSTAINED, read, 0, None, elapsed)
        message = answer_of(self.labels[best])
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        return Reply(message, reason, read, self.tokens[best], None, elapsed, float(sure[best]))

    def close(self) -> None:
        del self.session
