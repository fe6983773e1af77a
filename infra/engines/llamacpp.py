"""The llama.cpp engine: a GGUF file in this process, by xllamacpp's prebuilt wheel. No compiler, no server to install.

Prompts go in as tokens of the model's own Hugging Face tokenizer, so that what is read here is, id for id, what was
read in training.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

from infra.engines.chat import load_tokenizer, parse, render
from infra.engines.engine import Engine, Progress, Reply
from infra.settings import SetupError, settings

SLOTS = 8
SLOT_TOKENS = 4096


def started(file: Path, context: int, token: int) -> Any:
    """llama.cpp's server on a GGUF file, with room for `context` tokens in each slot; it has read one `token`.

    Raises:
        SetupError: llama.cpp cannot load the file.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel = context * SLOTS, SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = settings().cores
    parameters.cache_ram_mib = 0  # prompts are short; a cache of old ones would only hold memory
    parameters.verbosity = 0
    parameters.warmup = False
    try:
        server = xllamacpp.Server(parameters)
        # Closed before its loop has begun, the server would never end: one token shows that it runs.
        server.handle_completions({"prompt": [token], "n_predict": 1, "stream": False})
    except Exception as problem:  # the binding raises bare exceptions for a file it cannot load
        raise SetupError(f"llama.cpp cannot load {file} ({problem}); quantize the student again") from problem
    return server


class LlamaCpp(Engine):
    """Answers up to SLOTS requests at once by continuous batching."""

    name = "llamacpp"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = load_tokenizer(folder)
        trained = self.tokenizer.model_max_length
        self.context = min(trained, SLOT_TOKENS) if trained < 10**9 else SLOT_TOKENS
        self.server = started(folder / "model.gguf", self.context, self.tokenizer.eos_token_id)

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
            "prompt": prompt, "n_predict": min(self.max_tokens(request), room), "temperature": 0.0,
            "cache_prompt": True, "stream": False,
        }  # fmt: skip
        answer = self.server.handle_completions(body)
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp: {answer.get('error', answer)}")
        choice, usage, timings = answer["choices"][0], answer["usage"], answer["timings"]
        message = parse(choice["text"])
        return Reply(
            message, "tool_calls" if message.get("tool_calls") else choice["finish_reason"],
            usage["prompt_tokens"], usage["completion_tokens"],
            timings["prompt_ms"] + timings["predicted_per_token_ms"], 1000 * (monotonic() - started),
        )  # fmt: skip

    def close(self) -> None:
        del self.server
