"""What one of two processes holds of a base that is sharded: `torchrun ... -m tests.tasks.training.held FOLDER`."""

import json
import sys
from pathlib import Path

from tasks.lessons.imitation import imitate
from tasks.training.loop import Trainer, accelerator
from tests.tasks.lessons.toy import EXAMPLES, small_model
from tests.tasks.training.job import SPEC


def main(folder: Path) -> None:
    processes = accelerator(shard=True)
    trainer = Trainer(small_model(), SPEC, folder, lambda model, group, at: imitate(model, group), processes)
    base = [p for p in trainer.model.parameters() if not p.requires_grad]
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in base)
    losses = [trainer.learn(EXAMPLES[n : n + 6], 0.5) for n in range(0, 18, 6)]
    found = {"held": held / sum(p.numel() for p in base), "losses": losses}
    (folder / f"{processes.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
