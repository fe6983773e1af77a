"""llama.cpp in a process of its own: what becomes of it, and of its parent, when either dies."""

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.engines import load
from infra.settings import SetupError

ROOT = Path(__file__).parents[3]
HELLO = [{"messages": [{"role": "user", "content": "where is order 48213"}], "max_tokens": 4}]


def fatal(folder: Path) -> Path:
    """Make llama.cpp abort on a whole file that it parses: one without blocks."""
    model, key = folder / "model.gguf", b"llama.block_count"
    data = bytearray(model.read_bytes())
    at = data.index(key) + len(key) + 4  # behind the type of the value
    struct.pack_into("<I", data, at, 0)
    model.write_bytes(data)
    return folder


def test_a_file_that_kills_its_engine_is_named_with_the_signal(artifact: Callable[..., Path]) -> None:
    with pytest.raises(SetupError, match=r"llama\.cpp cannot load .*model\.gguf \(it dies when it loads it: SIGABRT"):
        load(fatal(artifact()))


def test_an_engine_that_is_killed_says_so_and_answers_nothing(artifact: Callable[..., Path]) -> None:
    engine: Any = load(artifact())
    assert engine.alive and engine.chat(HELLO)
    engine.server.process.kill()
    engine.server.process.wait()
    assert not engine.alive
    with pytest.raises(httpx.HTTPError):
        engine.chat(HELLO)
    engine.close()


def test_nobody_without_the_key_is_answered(artifact: Callable[..., Path]) -> None:
    engine: Any = load(artifact())
    url = f"{str(engine.server.client.base_url).rstrip('/')}/v1/completions"
    body = {"prompt": [1], "max_tokens": 1}
    assert httpx.post(url, json=body).status_code == 401
    engine.close()
    assert not engine.alive


def test_it_ends_with_its_parent_however_that_ends(artifact: Callable[..., Path]) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom infra.engines import load\n"
        "engine = load(Path(sys.argv[1]))\nprint(engine.server.process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(artifact())], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[-1][:3]:
        assert time.monotonic() < deadline, "it goes on without its parent"
        time.sleep(0.05)
