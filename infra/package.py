"""What is registered: an artifact folder, untouched, in a package that MLflow alone can serve.

    MLmodel, requirements.txt, ...   what MLflow writes: flavor, signature, example, environment
    served_model.py                  the model as code (`infra/served_model.py`)
    MODEL_CARD.md                    what it is and what it was shown to be worth
    model/                           the artifact as our engines, vLLM or llama-server load it
    SHA256SUMS                       sha256 of every file above, as `sha256sum --check SHA256SUMS` reads it

Two hashes are tags of the version, out of reach of who can only write where the files lie. `artifact_hash` is over
`model/` alone: it is what was scored, it makes two registrations the same version, and our engines check it; they read
nothing else, and run none of the package's code. `sums_hash` is the sha256 of SHA256SUMS and so covers all the rest.
The package's own code checks the files against SHA256SUMS before it loads any; it cannot vouch for itself.
"""

import hashlib
import json
import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.prefix import Prefix

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MODEL, SUMS, CARD = "model", "SHA256SUMS", "MODEL_CARD.md"
SCRIPT = Path(__file__).with_name("served_model.py")
NEEDS = {
    "gguf": ("mlflow", "pandas", "transformers", "jinja2", "xllamacpp"),
    "onnx": ("mlflow", "pandas", "numpy", "tokenizers", "onnxruntime"),
    "weights": ("mlflow", "pandas", "transformers", "jinja2", "torch", "accelerate", "compressed-tensors"),
}


def build(package: Path, artifact: Path, *, card: str, model_id: str, run_id: str) -> str:
    """Write the package of an artifact; returns the sha256 of its SHA256SUMS.

    Args:
        package: A folder that is not there yet.
        card: Markdown.
        model_id: MLflow's id of the logged model that the package becomes.
        run_id: And of the run that it belongs to.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own type hints when it is imported
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

    save_model(
        str(package), python_model=str(SCRIPT), signature=signature(), input_example=example(artifact),
        pip_requirements=requirements(artifact), mlflow_model=Model(model_id=model_id, run_id=run_id),
    )  # fmt: skip
    (package / CARD).write_text(card, encoding="utf-8")
    shutil.copytree(artifact, package / MODEL, copy_function=_linked)
    (package / SUMS).write_text(sums(package))
    return hashlib.sha256((package / SUMS).read_bytes()).hexdigest()


def _linked(source: str, target: str) -> None:
    """A second name of the file where the disk allows: weights are large, and MLflow copies them once more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the bytes of every file in a folder, by its relative name, in the order of the names."""
    found = {}
    for name, file in sorted((f.relative_to(folder).as_posix(), f) for f in folder.rglob("*") if f.is_file()):
        with file.open("rb") as stream:
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def sums(folder: Path) -> str:
    """The same as lines of SHA256SUMS, which does not list itself."""
    return "".join(f"{digest}  {name}\n" for name, digest in hashes(folder).items() if name != SUMS)


def requirements(artifact: Path) -> list[str]:
    """What serving an artifact needs from a package index, at the versions that are here.

    A build's own version (torch's `+cpu`) is named by what the index has.
    """
    kind = "gguf" if (artifact / "model.gguf").exists() else "onnx" if (artifact / "model.onnx").exists() else "weights"
    return [f"{name}=={version(name).partition('+')[0]}" for name in NEEDS[kind]]


def example(artifact: Path) -> dict[str, Any]:
    """A request in the form that the artifact reads, its prefix included; nobody's words, which may have to go."""
    file = artifact / "flywheel.json"
    prefix = Prefix.from_json(json.loads(file.read_text()).get("prefix")) if file.exists() else None
    messages, tools = (prefix or Prefix(None)).restore([{"role": "user", "content": "Hello"}])
    return {"messages": messages, **({"tools": tools} if tools else {})}


def signature() -> "ModelSignature":
    """OpenAI's chat request and response, as far as they are read and written.

    Limits are of any type: a frame in which one request names none would make floats of all others.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array, Map

    objects = Array(Map(AnyType()))
    limits = [ColSpec(AnyType(), name, required=False) for name in ("max_tokens", "max_completion_tokens")]
    named = ColSpec(DataType.string, "model", required=False)  # which every client sends, and is not read
    asked = [ColSpec(objects, "messages"), ColSpec(objects, "tools", required=False), *limits, named]
    texts = [ColSpec(DataType.string, name) for name in ("id", "object", "model")]
    answered = [ColSpec(DataType.long, "created"), ColSpec(objects, "choices"), ColSpec(Map(DataType.long), "usage")]
    return ModelSignature(inputs=Schema(asked), outputs=Schema([*texts, *answered]))
