"""An engine that dies when it loads takes no other process along."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.engines.trial import require_loadable
from infra.settings import SetupError, settings


def fatal(folder: Path) -> Path:
    """Make llama.cpp abort on a whole file that it parses: one without blocks."""
    model, key = folder / "model.gguf", b"llama.block_count"
    data = bytearray(model.read_bytes())
    at = data.index(key) + len(key) + 4  # behind the type of the value
    struct.pack_into("<I", data, at, 0)
    model.write_bytes(data)
    return folder


def test_a_file_that_kills_its_engine_is_named_with_the_signal(home: Path, artifact: Callable[..., Path]) -> None:
    with pytest.raises(SetupError, match=r"the engine dies when it loads .* \(SIGABRT"):
        require_loadable(fatal(artifact()), "fatal")


def test_what_has_passed_is_remembered_and_what_the_engine_refuses_is_left_to_it(
    home: Path, artifact: Callable[..., Path], labelled: Callable[..., Path]
) -> None:
    require_loadable(artifact(), "good")
    require_loadable(labelled(), "labels")
    known = {path.name for path in (settings().home / "serving" / "tried").iterdir()}
    assert len(known) == 2
    broken = artifact()
    (broken / "model.gguf").write_bytes(b"GGUF and then nothing")
    require_loadable(broken, "refused")
    require_loadable(broken, "good")
    assert {path.name for path in (settings().home / "serving" / "tried").iterdir()} == known
