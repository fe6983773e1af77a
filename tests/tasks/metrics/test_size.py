from pathlib import Path

from tasks.metrics.size import size


def test_only_weights_are_counted(tmp_path: Path) -> None:
    for name, count in (("model.gguf", 700), ("a.safetensors", 20), ("tokenizer.json", 5000), ("flywheel.json", 3)):
        (tmp_path / name).write_bytes(b"\0" * count)
    assert size(tmp_path) == 720
