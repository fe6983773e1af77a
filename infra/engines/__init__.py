"""The menu of engines: one line a way to run an artifact."""

from pathlib import Path

from infra.engines.engine import Engine as Engine
from infra.engines.engine import Reply as Reply
from infra.settings import SetupError, settings


def load(folder: Path, replace: bool = False) -> Engine:
    """Ready to answer: a GGUF by llama.cpp, a classifier by ONNX Runtime, safetensors by torch.

    With FLYWHEEL_SERVER all but classifiers by that server.

    Args:
        replace: Whether it is to serve all, so that a server which holds one set of weights may lose what it has.

    Raises:
        SetupError: The folder holds none of them, or it cannot be loaded.
    """
    adapter = (folder / "adapter_config.json").exists()
    weights = (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
    if settings().server and (adapter or weights or (folder / "model.gguf").exists()):
        from infra.engines.openai import OpenAI

        return OpenAI(folder, replace)
    if (folder / "model.gguf").exists():
        from infra.engines.llamacpp import LlamaCpp

        return LlamaCpp(folder)
    if (folder / "model.onnx").exists() and (folder / "flywheel.json").exists():
        from infra.engines.onnx import Onnx

        return Onnx(folder)
    if weights:
        from infra.engines.torch import Torch

        return Torch(folder)
    raise SetupError(
        f"{str(folder)!r} is no artifact: it has no model.gguf, model.onnx with flywheel.json, or safetensors"
    )
