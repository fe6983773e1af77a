"""The adapter of a student, all by PEFT: LoRA (Hu et al. 2021), DoRA, rsLoRA, or LoRA that begins as PiSSA.

| adapter | the weight that is used | from |
|---|---|---|
| lora | W + s B A, with s = alpha / rank and B = 0 at first | |
| dora | m (W + s B A) / ‖W + s B A‖, norms of rows, with m = ‖W‖ at first | Liu et al. 2024 |
| rslora | W + s B A, with s = alpha / √rank | Kalajdzievski 2023 |
| pissa | W - s B₀ A₀ + s B A, with B A = B₀ A₀ at first: the largest part of W | Meng et al. 2024 |

PiSSA trains against a base that lacks its own largest part. What is saved is a LoRA of twice the rank and alpha, with
[B | -B₀] and [A ; A₀], for the base as it was; the merged weights are the same. So PiSSA is how an adapter begins: what
goes on from it is a `lora` of that rank.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.settings import SetupError

if TYPE_CHECKING:
    from tasks.students.causal import Causal

Adapter = Literal["lora", "dora", "rslora", "pissa"]
ITERATIONS = 16  # of PiSSA's fast singular value decomposition; the paper's most exact
MANIFEST = "flywheel.json"


def fresh(model: Any, spec: "Causal", work: Path, tokens: Sequence[int] = ()) -> Any:
    """The model with a trainable adapter on the spec's linear layers, and all else frozen.

    Args:
        work: Keeps A₀ and B₀ of PiSSA until `save`.
        tokens: Whose embeddings are trained as well, and with them their rows of a head that is tied to them.

    Raises:
        SetupError: The model has no layer of a name that the spec targets.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    chosen = layers(model, spec)
    pissa = spec.adapter == "pissa"
    # A layer has no more singular values than its narrow side; alpha follows, so that the scale is that of the others.
    narrow = {name: n for name, layer in chosen.items() if pissa and (n := min(layer.weight.shape)) < spec.rank}
    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=list(chosen), lora_dropout=0.0, task_type="CAUSAL_LM",
        use_dora=spec.adapter == "dora", use_rslora=spec.adapter == "rslora", rank_pattern=narrow,
        alpha_pattern={name: spec.alpha * n / spec.rank for name, n in narrow.items()},
        init_lora_weights=f"pissa_niter_{ITERATIONS}" if pissa else True,
        trainable_token_indices=list(tokens) or None,
    )  # fmt: skip
    torch.manual_seed(spec.seed)
    with asking_by_the_old_name():
        adapted = get_peft_model(model, config)
        if pissa:
            # The parts are taken out of the base: nothing that reads this configuration shall take them out again.
            config.init_lora_weights = True
            adapted.save_pretrained(initial(work))
    return adapted


def layers(model: Any, spec: "Causal") -> dict[str, Any]:
    """The linear layers that get an adapter, by their full name; never the head.

    Raises:
        SetupError: A name that the spec targets is none of a linear layer.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, Linear | Conv1D) and m is not head}
    known = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := sorted(set(spec.targets) - set(known)):
        raise SetupError(f"distill.targets {', '.join(unknown)} are no linear layers of the base; it has {known}")
    return {name: m for name, m in linear.items() if not spec.targets or name.rpartition(".")[2] in spec.targets}


def initial(work: Path) -> Path:
    """Where PiSSA's first weights are kept while it is trained."""
    return work / "pissa"


def save(adapted: Any, folder: Path, spec: "Causal", work: Path, manifest: dict[str, Any]) -> None:
    """Write the adapter as PEFT reads it onto the base as it was, and a manifest of what it was made from."""
    first = str(initial(work)) if spec.adapter == "pissa" else None
    with asking_by_the_old_name():
        adapted.save_pretrained(folder, path_initial_model_for_weight_conversion=first)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


@contextmanager
def asking_by_the_old_name() -> Iterator[None]:
    """PEFT asks transformers for `is_gradient_checkpointing`, which has a new name: nothing that a user can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
