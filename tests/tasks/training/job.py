"""A training run as a process: `python -m tests.tasks.training.job FOLDER LESSON [DIE_AT ...]`, or under torchrun.

The losses of its steps and the digest of the final adapter go to FOLDER/result.json. For each DIE_AT a child is forked
that is killed there: at the number of a step, `epoch` (between validation and the checkpoint after it) or `write` (when
half a checkpoint is written). After the last one a run goes through.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tasks.lessons import Logits, OnPolicy
from tasks.lessons.lesson import Desk, Teach
from tasks.students import Causal
from tasks.training import loop
from tests.tasks.lessons.toy import EXAMPLES, TOKENIZER, small_model, small_teacher, teacher_of

SPEC = Causal(epochs=3, batch_tokens=40, learning_rate=1e-2, checkpoint_steps=2, rank=4, alpha=8)


def lesson(name: str) -> Teach:
    """`logits`, or `on_policy` beside it."""
    logged = Logits().toward(teacher_of(EXAMPLES))
    if name == "logits":
        return logged
    prompts = {e.row: e.ids[: e.prompt] for e in EXAMPLES}
    desk = Desk(None, [], EXAMPLES, TOKENIZER, None, 0, None)  # type: ignore[arg-type]
    return OnPolicy(share=0.8, rate=0.6).beside(logged, small_teacher(), prompts, desk)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, name: str = "logits", die_at: str = "") -> dict[str, Any]:
    """Losses and digest of a run, which goes on with what is in the folder."""
    torch.set_num_threads(1)
    curve: list[float] = []

    class Watched(loop.Trainer):
        def learn(self, group: Any, at: float) -> float:
            curve.append(super().learn(group, at))
            if die_at == str(self.step + 1):
                die()
            return curve[-1]

        def save(self) -> None:
            if die_at == "epoch" and self.history:
                die()
            super().save()

    if die_at == "write":
        rename = Path.rename

        def half(path: Path, target: Path) -> Path:
            if (folder / "checkpoint.safetensors").exists():
                path.write_bytes(path.read_bytes()[:100])
                die()
            return rename(path, target)

        Path.rename = half  # type: ignore[method-assign,assignment]
    trainer = Watched(small_model(), SPEC, folder, lesson(name))
    trainer.run(EXAMPLES[:18], EXAMPLES[18:], None)
    digest = hashlib.sha256()
    for name, parameter in sorted(trainer.adapter.items()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    if trainer.processes.is_main_process:
        result = {"curve": curve, "history": trainer.history, "digest": digest.hexdigest()}
        (folder / "result.json").write_text(json.dumps(result))
    return trainer.adapter


if __name__ == "__main__":
    folder, name = Path(sys.argv[1]), sys.argv[2]
    loop.Trainer(small_model(), SPEC, folder, lesson(name))  # imports it all, once for all children
    for end in sys.argv[3:]:
        if (child := os.fork()) == 0:
            train(folder, name, end)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"nothing killed it at {end}"
    train(folder, name)
