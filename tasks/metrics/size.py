"""Size: the bytes of weights in an artifact."""

from pathlib import Path

from tasks.quantize import weights_of


def size(folder: Path) -> int:
    """Bytes of the weight files; tokenizer and manifest are not counted."""
    return sum(file.stat().st_size for file in weights_of(folder))
