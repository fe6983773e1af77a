"""The llama.cpp engine: a GGUF file in a process beside this one, by xllamacpp's prebuilt wheel. No compiler needed.

Prompts go in as tokens of the model's own Hugging Face tokenizer, so that what is read here is, id for id, what was
read in training.

Why a process of its own: llama.cpp aborts on some files that are whole and parse, and on too little memory, and would
take a gateway along with the version that serves; and the binding holds Python's lock for as long as it loads, in which
the gateway would answer nobody. The process has llama.cpp's own HTTP server on a free port of this machine, behind a
key that only its parent knows, and ends with its parent: its standard input closes then, however that died. A request
costs about a millisecond more than in this process.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from infra.engines.chat import load_tokenizer, parse, render
from infra.engines.engine import Engine, Progress, Reply
from infra.settings import SetupError, settings

SLOTS = 8
SLOT_TOKENS = 4096
CLOSE_SECONDS = 5.0


def serve(file: str, context: int, token: int, threads: int) -> None:
    """The process: serve a file until standard input ends, whose first line is the key, and say where, or why not."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port = file, 0
    parameters.api_keys = [sys.stdin.readline().strip()]
    parameters.n_ctx, parameters.n_parallel = context * SLOTS, SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_ram_mib = 0  # prompts are short; a cache of old ones would only hold memory
    parameters.verbosity = 0
    parameters.warmup = False
    try:
        server = xllamacpp.Server(parameters)
        # Asked before its loop has begun, the server would not answer: one token shows that it runs.
        server.handle_completions({"prompt": [token], "n_predict": 1, "stream": False})
        said = {"address": server.listening_address}
    except Exception as problem:  # the binding raises bare exceptions for a file it cannot load
        said = {"problem": str(problem)}
    print(json.dumps(said), flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's own end may wait for requests that nobody waits for


class Process:
    """llama.cpp's server on a GGUF file, with room for `context` tokens in each slot; it has read one `token`.

    Raises:
        SetupError: llama.cpp cannot load the file, or dies of it.
    """

    def __init__(self, file: Path, context: int, token: int) -> None:
        key = secrets.token_urlsafe(32)
        command = [sys.executable, "-m", "infra.engines.llamacpp", str(file), *map(str, (context, token))]
        # A session of its own: Ctrl-C is its parent's to handle. GGML would start a debugger to say where it died.
        self.process = subprocess.Popen(
            [*command, str(settings().cores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, cwd=Path(__file__).parents[2], env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,
        )  # fmt: skip
        try:
            said = self._greeting(key)
        except BaseException:
            self.close()
            raise
        if "address" not in said:
            self.close()
            raise SetupError(f"llama.cpp cannot load {file} ({said['problem']}); quantize the student again")
        self.client = httpx.Client(
            base_url=said["address"], timeout=600, headers={"authorization": f"Bearer {key}"}, trust_env=False
        )

    def _greeting(self, key: str) -> dict[str, str]:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{key}\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                said: dict[str, str] = json.loads(line)
                return said
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"problem": f"it dies when it loads it: {how}"}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion, as llama.cpp's server says it.

        Raises:
            httpx.HTTPError: The process has died.
            RuntimeError: It has no answer.
        """
        answer = self.client.post("/v1/completions", json=body)
        if not answer.is_success:
            raise RuntimeError(f"llama.cpp: {answer.status_code} {answer.text[:200]}")
        said: dict[str, Any] = answer.json()
        return said

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class LlamaCpp(Engine):
    """Answers up to SLOTS requests at once by continuous batching."""

    name = "llamacpp"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = load_tokenizer(folder)
        trained = self.tokenizer.model_max_length
        self.context = min(trained, SLOT_TOKENS) if trained < 10**9 else SLOT_TOKENS
        self.server = Process(folder / "model.gguf", self.context, self.tokenizer.eos_token_id)

    def chat(
        self, requests: Sequence[dict[str, Any]], progress: Progress | None = None, parallel: int = SLOTS
    ) -> list[Reply]:
        replies: list[Reply] = []
        with ThreadPoolExecutor(max(1, min(parallel, SLOTS, len(requests)))) as pool:
            for reply in pool.map(self._answer, requests):
                replies.append(reply)
                if progress:
                    progress(len(replies), len(requests), "answers")
        return replies

    def _answer(self, request: dict[str, Any]) -> Reply:
        started = monotonic()
        prompt = render(self.tokenizer, request["messages"], request.get("tools"), prompt=True)
        room = self.context - len(prompt)
        if room < 1:
            return Reply({"role": "assistant", "content": ""}, "length", len(prompt), 0, None, 0.0)
        body = {
            "prompt": prompt, "max_tokens": min(self.max_tokens(request), room), "temperature": 0.0,
            "cache_prompt": True, "stream": False,
        }  # fmt: skip
        answer = self.server.complete(body)
        choice, usage, timings = answer["choices"][0], answer["usage"], answer["timings"]
        message = parse(choice["text"])
        return Reply(
            message, "tool_calls" if message.get("tool_calls") else choice["finish_reason"],
            usage["prompt_tokens"], usage["completion_tokens"],
            timings["prompt_ms"] + timings["predicted_per_token_ms"], 1000 * (monotonic() - started),
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self.server.alive

    def close(self) -> None:
        self.server.close()


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
