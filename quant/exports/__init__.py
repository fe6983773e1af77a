"""The export formats: one file a format, one line a choice. A module is loaded when its format is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from quant.errors import QuantError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Format = Literal["compressed_tensors", "gguf", "onnx"]
EXPORTS: tuple[Format, ...] = get_args(Format)


def writer(format: Format) -> Callable[[nn.Module, Path, Path], Path]:
    """`write(model, path, tokenizer_dir)` of a format. Raises QuantError for one that is not on the menu."""
    if format not in EXPORTS:
        raise QuantError(f"export format {format!r} does not exist; use one of {', '.join(EXPORTS)}")
    return import_module(f"quant.exports.{format}").write  # type: ignore[no-any-return]
