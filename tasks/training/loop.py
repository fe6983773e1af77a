"""The training loop of a causal student: optimizer, schedule, checkpoints, the best epoch; in one process or several.

What is learned is a lesson's matter (`lessons/`), which gives the loss of a batch. The optimizer is Muon (`muon.py`),
which steps each matrix of the adapter by an orthogonal one, so that no direction is left behind. On the seedling at
LoRA alpha 64 it came to 0.8 times AdamW's validation loss in the same steps; the larger alpha did the rest.

Checkpoints hold adapter, momentum, step and hard cases as safetensors. The order of batches is a function of those,
seed and epoch, and nothing else is random, so a run that was killed ends with the same weights as one that was not,
given as many threads.

Under torchrun (`launch.py`) each process takes its share of every batch, and the sums of losses, weights and gradients
are added up, so that a step is the same however many they are. Every process holds the whole adapter, gradients and
momentum with it: they are small, and Muon needs whole matrices. The frozen base can be sharded (FSDP2, by accelerate).
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.settings import SetupError
from tasks.lessons.imitation import imitate
from tasks.lessons.lesson import Loss, Teach
from tasks.training.curve import Curve
from tasks.training.examples import Example, plan, schedule, share
from tasks.training.hard import redrawn, unlearned
from tasks.training.varied import Vary

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from tasks.students.causal import Causal

Progress = Callable[[int, int, str], None]
Schedule = Literal["cosine", "linear", "constant"]
BEST = "best.safetensors"
OFTEN = 60.0  # seconds after which there is a checkpoint, however few the steps: a run may be cancelled


def accelerator(shard: bool = False) -> "Accelerator":
    """This process among those that train together: one of torchrun's, or alone.

    Args:
        shard: Whether each of several processes holds a part of the frozen base.
    """
    from datetime import timedelta

    import torch
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin, InitProcessGroupKwargs

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    plugin = (
        FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        if shard and several
        else None
    )
    # The others wait while the first asks the teacher; if one of them dies, torchrun ends them all.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))
    made = Accelerator(cpu=not torch.cuda.is_available(), fsdp_plugin=plugin, kwargs_handlers=[patient])
    made.state.fsdp_plugin = plugin  # on a CPU accelerate leaves it out; torch shards
    return made


class Trainer:
    """One adapted model, one lesson, one optimizer.

    Attributes:
        adapter: What is trained, by name.
        packed: Whether the sequences of a batch are one row.
        history: The validation loss after each epoch, and the step that it ended with.
        curve: The lesson's loss on the way.
        hard: Rows that are drawn more often in this epoch.
    """

    def __init__(
        self, model: Any, spec: "Causal", work: Path, teach: Teach, processes: "Accelerator | None" = None
    ) -> None:
        from tasks.training.forward import pack
        from tasks.training.lora import fuse
        from tasks.training.muon import Muon

        self.model, self.spec, self.work, self.teach = model, spec, work, teach
        self.processes = processes or accelerator()
        fuse(model)
        self.packed = pack(model.get_base_model())
        self.adapter = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = Muon(self.adapter.values(), lr=spec.learning_rate)
        if self.processes.state.fsdp_plugin:
            if not self.packed:
                kind = model.config.model_type
                raise SetupError(f"a {kind!r} model cannot be packed, so not be sharded either; unset FLYWHEEL_SHARD")
            shard(model, self.processes)
        self.step = 0
        self.best = math.inf
        self.history: list[dict[str, float]] = []
        self.curve = Curve()
        self.hard: list[int] = []
        self.saved = time.monotonic()

    def validate(self, examples: Sequence[Example]) -> float:
        """Mean cross-entropy of the answers, whatever the lesson: in nats a token."""
        groups = schedule(examples, self.spec.batch_tokens, 0, 0, self.packed)
        whole = imitation_loss(self.model, [self.own(group) for group in groups])
        self.add_up(whole)
        return whole.mean.item()

    def run(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        progress: Progress | None,
        vary: Vary | None = None,
    ) -> None:
        """Train from the last checkpoint, if there is one; afterwards the model holds the best epoch's adapter.

        Args:
            vary: Epoch → the training examples as it sees them, where that is not `train` every time.
        """
        spec = self.spec
        seen = vary or (lambda _: train)
        epochs = plan(seen, spec.batch_tokens, spec.seed, spec.epochs, spec.max_steps, self.packed)
        total, done = sum(map(len, epochs)), 0
        self.curve = Curve.over(total)
        self.restore()
        self.model.train()
        for epoch, groups in enumerate(epochs):
            if self.hard:
                groups = redrawn(
                    seen(epoch), self.hard, spec.hard, spec.batch_tokens, spec.seed, epoch, len(groups), self.packed
                )
            for group in groups:
                done += 1
                if done <= self.step:
                    continue
                loss = self.learn(group, done / total)
                self.step = done
                self.curve.note(done, loss)
                if done % spec.checkpoint_steps == 0 or time.monotonic() - self.saved > OFTEN:
                    self.save()
                if progress:
                    progress(done, total, f"distill, loss {loss:.3f}")
            if len(self.history) <= epoch:
                self.hard = unlearned(self.model, train, spec.batch_tokens, self.packed) if spec.hard > 1 else []
                self.remember(epoch, self.validate(validation or train[:64]))
        self.processes.wait_for_everyone()  # for what the first has written
        load_adapter(self.model, self.work)

    def learn(self, group: Sequence[Example], at: float) -> float:
        """One step by a batch, when `at` of all steps are done with it; returns its mean loss."""
        import torch

        for options in self.optimizer.param_groups:
            options["lr"] = max(self.spec.learning_rate * pace(at, self.spec.schedule, self.spec.warmup), 1e-7)
        loss = self.teach(self.model, self.own(group), at)
        loss.total.backward()
        whole = Loss(loss.total.detach(), loss.weight)
        for parameter in self.adapter.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.adapter.values()]
        self.add_up([*gradients, *whole])
        for gradient in gradients:
            gradient.div_(whole.weight)
        torch.nn.utils.clip_grad_norm_(self.adapter.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return whole.mean.item()

    def own(self, group: Sequence[Example]) -> Sequence[Example]:
        """This process's share of a batch."""
        several = self.processes.num_processes > 1
        return share(group, self.processes.process_index, self.processes.num_processes) if several else group

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        """Make each tensor the sum of what the processes have there."""
        import torch

        if self.processes.num_processes == 1:
            return
        flat = self.processes.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def remember(self, epoch: int, loss: float) -> None:
        """Note an epoch's validation loss; keep its adapter if it is the best so far."""
        self.history.append({"epoch": epoch + 1, "step": self.step, "validation_loss": round(loss, 5)})
        if loss < self.best:
            self.best = loss
            if self.processes.is_main_process:
                write_tensors(self.adapter, self.work / BEST)
        self.save()

    def save(self) -> None:
        self.saved = time.monotonic()
        if not self.processes.is_main_process:
            return
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.adapter.items():
            tensors[name] = parameter
            tensors |= {f"{kind}|{name}": tensor for kind, tensor in self.optimizer.state[parameter].items()}
        state = {"step": self.step, "best": self.best, "history": self.history, "hard": self.hard}
        state["curve"] = asdict(self.curve)
        write_tensors(tensors, self.work / "checkpoint.safetensors", {"state": json.dumps(state)})

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        from safetensors import safe_open

        path = self.work / "checkpoint.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as stored:
            state = json.loads(stored.metadata()["state"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no iterator)
        for name, parameter in self.adapter.items():
            parameter.data.copy_(tensors[name])
            for kind, tensor in self.optimizer.state[parameter].items():
                tensor.copy_(tensors[f"{kind}|{name}"])
        self.step, self.best = state["step"], state["best"]
        self.history, self.hard = state["history"], state["hard"]
        self.curve = Curve(**state["curve"]) if "curve" in state else self.curve


def imitation_loss(model: Any, groups: Sequence[Sequence[Example]]) -> Loss:
    """The loss of imitation over some batches, which teach nothing."""
    import torch

    model.eval()
    with torch.no_grad():
        losses = [imitate(model, group) for group in groups]
    model.train()
    return Loss(*(torch.stack(parts).sum() for parts in zip(*losses, strict=True)))


def shard(model: Any, processes: "Accelerator") -> None:
    """Leave each process a part of the frozen base; the adapter stays whole everywhere."""
    from accelerate.utils import fsdp2_prepare_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    processes.state.fsdp_plugin.ignored_modules = [
        getattr(layer, name) for layer in layers for name in layer.adapter_layer_names if hasattr(layer, name)
    ]
    fsdp2_prepare_model(processes, model.get_base_model())


def load_adapter(model: Any, work: Path) -> None:
    """Give an adapted model the best epoch's adapter."""
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    for name, tensor in load_file(work / BEST).items():
        parameters[name].data.copy_(tensor)


def pace(at: float, schedule: Schedule, warmup: float) -> float:
    """Share of the peak rate when `at` of all steps are done: a rise over the warm-up's share, then the schedule."""
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * at)), "linear": 1 - at, "constant": 1.0}[schedule]
    return min(at / warmup if warmup else 1.0, fall)


def write_tensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, partial, metadata)
    partial.rename(path)
