"""The menu of engines: one line a way to run an artifact."""

from pathlib import Path

from infra.engines.engine import Engine as Engine
from infra.engines.engine import Reply as Reply
from infra.settings import SetupError


def load(folder: Path) -> Engine:
    """Ready to answer: a GGUF by llama.cpp, a classifier by ONNX Runtime, safetensors by torch.

    Raises:
        SetupError: The folder holds none of them.
    """
    if (folder / "model.gguf").exists():
        from infra.engines.llamacpp import LlamaCpp

        return LlamaCpp(folder)
    if (folder / "model.onnx").exists() and (folder / "flywheel.json").exists():
        from infra.engines.onnx import Onnx

        return Onnx(folder)
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
        from infra.engines.torch import Torch

        return Torch(folder)
    raise SetupError(
        f"{str(folder)!r} is no artifact: it has no model.gguf, model.onnx with flywheel.json, or safetensors"
    )
