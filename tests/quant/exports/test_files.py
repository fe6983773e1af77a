"""A file that is not what was written is refused, whatever its format: a flipped bit of a weight still parses."""

import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

from quant import QuantError, export, quantize
from quant.exports import Format, files
from quant.methods import RTN


@pytest.mark.parametrize(
    ("format", "name"),
    [("compressed_tensors", "model.safetensors"), ("gguf", "model.gguf"), ("onnx", "model.onnx")],
)
def test_a_flipped_bit_is_seen(
    model: nn.Module, tokenizer_dir: Path, tmp_path: Path, format: Format, name: str
) -> None:
    quantize(model, RTN(bits=4))
    written = export(model, tmp_path / name if format == "gguf" else tmp_path, format, tokenizer_dir)
    read, file = import_module(f"quant.exports.{format}").read, tmp_path / name
    subprocess.run(["sha256sum", "--check", f"{name}.sha256"], cwd=tmp_path, check=True, capture_output=True)
    whole, content = read(written), file.read_bytes()
    file.write_bytes(content[:-65] + bytes([content[-65] ^ 1]) + content[-64:])
    with pytest.raises(QuantError, match=rf"^.*/{name} is not the file its checksum was made of; copy or export it"):
        read(written)
    files.checksum_of(file).unlink()  # of another writer
    file.write_bytes(content)
    assert read(written).keys() == whole.keys()


def test_an_export_that_fails_leaves_what_was_there(tokenizer_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(ZeroDivisionError), files.folder(target, "any", tokenizer_dir, last="config.json") as partial:
        (partial / "config.json").write_text("new")
        raise ZeroDivisionError
    assert [(f.name, f.read_text()) for f in target.iterdir()] == [("config.json", "old")]
    assert list(tmp_path.iterdir()) == [target]
