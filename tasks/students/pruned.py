"""The base of a causal student with less of it: pruned on the dataset's own traffic, before an adapter is made.

What is left lies in the work folder, written once: a run that was killed goes on with it, and each of torchrun's
processes reads it. How it is pruned is in `quant.pruning`.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import SetupError
from quant.pruning import Prune
from tasks.teachers.hf import load_model

if TYPE_CHECKING:
    from tasks.dataset.frozen import Dataset

ROWS = 256  # of training traffic that importance is measured on
REPORT = "pruned.json"


def pruned(base: str, spec: Prune, dataset: "Dataset", work: Path) -> Path:
    """The folder of what is left of a base.

    Raises:
        SetupError: The base is of a kind that is not pruned, or a share leaves all of it.
    """
    from infra.engines.chat import load_tokenizer
    from quant import QuantError
    from quant.pruning import prune
    from tasks.training.examples import calibration

    folder = work / "pruned"
    if folder.exists():
        return folder
    whole, partial = load_model(base), folder.with_suffix(".partial")
    batches = list(calibration(dataset.split("train"), load_tokenizer(base), 16, ROWS))
    try:
        small: Any = prune(whole, spec, batches)
    except QuantError as problem:
        raise SetupError(f"distill.prune: {problem}") from problem
    shutil.rmtree(partial, ignore_errors=True)
    small.save_pretrained(partial)
    said = {"parameters_before": parameters(whole), "parameters": parameters(small)}
    (partial / REPORT).write_text(json.dumps(said))
    partial.rename(folder)
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    """What was left of the base in a folder that `pruned` made."""
    said: dict[str, Any] = json.loads((folder / REPORT).read_text())
    return said


def parameters(model: Any) -> int:
    """How many numbers a model is made of; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
